//! Which events somebody wants to hear of: kinds, and places by name or by how the name begins.
//! Pure: no socket, no clock.

use super::Event;

/// Every kind of event there is.
pub const KINDS: [&str; 6] = ["health", "registered", "changed", "removed", "service", "agent"];

/// What somebody wants to hear of; an empty list: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of these [`KINDS`].
    pub kinds: Vec<String>,
    /// Of services in these namespaces. Here and below `pay-*` is every name that begins so.
    pub namespaces: Vec<String>,
    /// Of these groups.
    pub groups: Vec<String>,
    /// Of these names.
    pub services: Vec<String>,
}

impl Filter {
    /// Checks the kinds.
    ///
    /// # Errors
    /// The first word that is no kind.
    pub fn check(&self) -> Result<(), String> {
        match self.kinds.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
            None => Ok(()),
            Some(kind) => Err(format!("{kind:?} is no kind of event: {}", KINDS.join(", "))),
        }
    }

    /// Whether it is wanted. What agents do is of no service: only who asks for no service hears of it.
    pub(super) fn takes(&self, event: &Event) -> bool {
        if !self.kinds.is_empty() && !self.kinds.iter().any(|kind| kind == event.event) {
            return false;
        }
        let Some(place) = &event.place else {
            return self.namespaces.is_empty() && self.groups.is_empty() && self.services.is_empty();
        };
        fits(&self.namespaces, &place.namespace)
            && fits(&self.groups, &place.group)
            && fits(&self.services, &place.service)
    }
}

fn fits(wanted: &[String], found: &str) -> bool {
    let fits = |wanted: &String| match wanted.strip_suffix('*') {
        Some(beginning) => found.starts_with(beginning),
        None => wanted == found,
    };
    wanted.is_empty() || wanted.iter().any(fits)
}

#[cfg(test)]
mod tests {
    use super::super::Place;
    use super::*;

    /// Kinds and names, whole or by how they begin; agents are of no service: table.
    #[test]
    fn what_is_wanted() {
        let list = |text: &str| text.split(',').filter(|w| !w.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let event = |event: &'static str, service: Option<&str>| {
            let place = service.map(|service| {
                let (namespace, group) = ("public".into(), "DEFAULT_GROUP".into());
                Place { namespace, group, service: service.into() }
            });
            Event { number: 1, event, at_ms: 0, place, instance: None, health: None, agent: None }
        };
        let cases = [
            ("", "", "", "", "health", Some("web"), true),
            ("health,removed", "", "", "", "removed", Some("web"), true),
            ("health", "", "", "", "removed", Some("web"), false),
            ("", "", "", "web,pay-*", "health", Some("pay-eu"), true),
            ("", "", "", "web,pay-*", "health", Some("payments"), false),
            ("", "", "", "web", "health", Some("web2"), false),
            ("", "dev", "", "", "health", Some("web"), false),
            ("", "pub*", "DEFAULT_GROUP", "*", "health", Some("web"), true),
            ("", "", "", "", "agent", None, true),
            ("agent", "", "", "", "agent", None, true),
            ("", "", "", "web", "agent", None, false),
            ("", "public", "", "", "agent", None, false),
        ];
        for (kinds, namespaces, groups, services, kind, service, want) in cases {
            let (kinds, namespaces) = (list(kinds), list(namespaces));
            let filter = Filter { kinds, namespaces, groups: list(groups), services: list(services) };
            filter.check().unwrap();
            assert_eq!(filter.takes(&event(kind, service)), want, "{filter:?} {kind} {service:?}");
        }
        let wrong = Filter { kinds: list("health,moon"), ..Filter::default() };
        assert!(wrong.check().unwrap_err().contains("\"moon\""));
    }
}
