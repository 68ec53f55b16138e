//! `[link] ktls`, in both files: whether the kernel may encrypt the link.

use super::{Document, Error};
use toml::Spanned;

/// `"auto"`, the default, is true: where the kernel can.
pub(super) fn check(doc: &Document, raw: Option<&Spanned<String>>) -> Result<bool, Error> {
    let read = |text: &str| match text {
        "auto" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is neither".into()),
    };
    raw.map_or(Ok(true), |word| doc.value(word, read, "\"auto\" or \"off\""))
}

#[cfg(test)]
mod tests {
    use super::super::{Document, agent, bridge};

    /// Both files have the key, and both say what is wrong with it.
    #[test]
    fn both_ends_have_a_say() {
        let bridge = |text: &str| bridge::check(&Document::of("bridge.toml", text)).map(|b| b.link.ktls);
        assert!(bridge("").unwrap() && bridge("[link]\nktls = \"auto\"").unwrap());
        assert!(
            !bridge("[link]\nktls = \"off\"").unwrap() && !bridge("[link]\nktls = \"off\"\ntls = \"auto\"").unwrap()
        );
        let agent = |ktls: &str| {
            let text =
                format!("[link]\ntoken = \"t\"\n{ktls}\n[[expose]]\nservice = \"web\"\naddress = \"127.0.0.1:1\"\n");
            agent::check(&Document::of("agent.toml", &text)).map(|a| a.links[0].ktls)
        };
        assert!(agent("").unwrap() && agent("ktls = \"auto\"").unwrap() && !agent("ktls = \"off\"").unwrap());
        let error = agent("ktls = \"on\"").unwrap_err().to_string();
        assert_eq!(error, "agent.toml:3: [link] ktls = \"on\": it is neither. Try: \"auto\" or \"off\"");
        let error = bridge("[link]\nktls = \"yes\"").unwrap_err().to_string();
        assert_eq!(error, "bridge.toml:2: [link] ktls = \"yes\": it is neither. Try: \"auto\" or \"off\"");
    }
}
