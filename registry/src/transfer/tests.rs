//! Export, import, and what is refused.

use super::*;
use crate::checker::Checker;
use crate::model::{Cluster, InstanceId, Metadata, Name};
use crate::selector::service::{LabelSelector, ServiceSelector};
use crate::service::Options;

fn registry() -> Registry {
    Registry::open(&Options::default()).unwrap()
}

fn moved() -> Vec<Moved> {
    let id = |port| InstanceId::new("c-1", "10.0.0.1", port).unwrap();
    let metadata = Metadata::from([("k".into(), "v\n\"ü".into())]);
    let cluster = Cluster { checker: Checker::tcp(Some(81)), metadata: metadata.clone() };
    let settings = ServiceMeta {
        protect_threshold: 0.5,
        metadata: metadata.clone(),
        selector: ServiceSelector::Label(LabelSelector::of(["zone"]).unwrap()),
        clusters: [(Name::from("c-1"), cluster)].into(),
    };
    let many = (1..=700).map(|port| Instance { weight: 0.5, enabled: port % 2 == 0, ..Instance::new(id(port)) });
    vec![
        Moved {
            service: ServiceKey::new("dev", "g", "a").unwrap(),
            settings: Some(settings),
            instances: many.collect(),
        },
        Moved {
            service: ServiceKey::public("b").unwrap(),
            settings: None,
            instances: vec![Instance { metadata, ..Instance::new(id(9)) }],
        },
    ]
}

fn exported(registry: &Registry) -> Vec<u8> {
    let mut text = Vec::new();
    export(registry, &mut text).unwrap();
    text
}

/// What is exported is what was imported, in another registry too; doing it again changes nothing; ephemeral instances
/// stay at home.
#[tokio::test]
async fn there_and_back() {
    let registry = registry();
    let counts = import(&registry, moved()).await.unwrap();
    assert_eq!(counts, Counts { services: 2, instances: 701 });
    let ephemeral = Instance { ephemeral: true, ..Instance::new(InstanceId::new("", "10.0.0.2", 1).unwrap()) };
    let service = ServiceKey::public("c").unwrap();
    registry.submit(Command::Register { service, instance: ephemeral }).await.unwrap();
    let text = exported(&registry);
    assert_eq!(read(&mut &text[..]).unwrap(), moved());
    let other = self::registry();
    let mut changes = other.subscribe();
    import(&other, read(&mut &text[..]).unwrap()).await.unwrap();
    assert_eq!(exported(&other), text);
    while changes.try_recv().is_ok() {}
    import(&other, moved()).await.unwrap();
    assert!(changes.try_recv().is_err(), "again changes nothing");
    registry.stop();
    other.stop();
}

/// A text that is cut off anywhere, or says something that cannot be, is refused with its line.
#[test]
fn what_is_refused() {
    let mut text = Vec::new();
    write(moved().into_iter(), &mut text).unwrap();
    let lines: Vec<&[u8]> = text.split_inclusive(|b| *b == b'\n').collect();
    assert_eq!(lines.len(), 4);
    for cut in (0..text.len() - 1).step_by(97).chain(1..lines.len().min(3)) {
        let refused = read(&mut &text[..cut]).expect_err("it was cut off").to_string();
        assert!(refused.contains("Nothing was changed"), "{cut}: {refused}");
    }
    let bad = [
        (String::from("{\"ringspan_registry\":2}\n"), "format 2"),
        ("[]\n".into(), "no export"),
        ("{\"ringspan_registry\":1}\n{\"services\":1,\"instances\":0}\n".into(), "it says"),
        (String::from_utf8(text.clone()).unwrap().replace("\"port\":9,", "\"port\":0,"), "line 2: Param 'port'"),
        (String::from_utf8(text.clone()).unwrap() + "{}\n", "line 5: there is something behind"),
    ];
    for (text, problem) in bad {
        let refused = read(&mut text.as_bytes()).expect_err("it is wrong").to_string();
        assert!(refused.contains(problem), "{problem:?}: {refused}");
    }
}
