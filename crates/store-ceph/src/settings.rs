//! Settings in the monitors' database: their commands in JSON, and what they answer. Pure.

use ferry_store::Setting;
use serde_json::{Value, json};

/// Lists all settings.
pub(crate) fn dump() -> String {
    json!({"prefix": "config dump", "format": "json"}).to_string()
}

/// Keeps one.
pub(crate) fn set(setting: &Setting) -> String {
    let Setting { section, name, value } = setting;
    json!({"prefix": "config set", "who": section, "name": name, "value": value}).to_string()
}

/// Gives one up.
pub(crate) fn remove(section: &str, name: &str) -> String {
    json!({"prefix": "config rm", "who": section, "name": name}).to_string()
}

/// The settings in the answer to [`dump`], without such as hold for some machines only. `None`: it is no such answer.
pub(crate) fn parse(answer: &[u8]) -> Option<Vec<Setting>> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let mut settings = Vec::new();
    for entry in answer.as_array()? {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        if text("mask").is_some_and(|mask| !mask.is_empty()) {
            continue;
        }
        settings.push(Setting {
            section: text("section")?,
            name: text("name")?,
            value: text("value")?,
        });
    }
    Some(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_quote_what_people_wrote() {
        let setting = Setting {
            section: "client.a\"b".to_owned(),
            name: "rbd_x".to_owned(),
            value: "1\\".to_owned(),
        };
        let expected = r#"{"prefix":"config set","who":"client.a\"b","name":"rbd_x","value":"1\\"}"#;
        assert_eq!(set(&setting), expected);
    }

    #[test]
    fn settings_come_out_of_the_monitors_answer_and_nothing_out_of_another() {
        let answer =
            br#"[{"section":"global","name":"rbd_cache","value":"false","level":"advanced","mask":""},
            {"section":"client","name":"rbd_cache","value":"true","mask":"host:x"}]"#;
        let settings = parse(answer).unwrap();
        assert_eq!(settings.len(), 1);
        assert_eq!(settings[0].section, "global");
        assert_eq!(settings[0].value, "false");
        for other in [&b""[..], b"{}", b"[1]", b"[{\"section\":\"global\"}]"] {
            assert_eq!(parse(other), None);
        }
    }
}
