//! One value, four machine-readable forms. The tree is ordered; a map keeps the order in which fields were added.
//!
//! JSON shows the root's value only; XML wraps it in the root name. A list knows the element name of its items,
//! which only XML shows. Ceph writes many booleans as strings (`"protected": "true"`): use [`Node::str_bool`] for
//! those and `Node::Bool` for the real ones.

use quick_xml::Writer;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};
use serde_json::{Map, Value};

/// The form that `--format` and `--pretty-format` ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutputFormat {
    /// Text for people; the command renders it itself.
    #[default]
    Plain,
    /// JSON on one line, or with four spaces per level.
    Json {
        /// `--pretty-format` was given.
        pretty: bool,
    },
    /// XML on one line, or with one space per level.
    Xml {
        /// `--pretty-format` was given.
        pretty: bool,
    },
}

impl OutputFormat {
    /// True for the form that the command renders itself.
    pub fn is_plain(self) -> bool {
        self == Self::Plain
    }
}

/// A value in a [`Document`].
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    /// Fields in the order they were added. Each name is expected once.
    Map(Vec<(String, Node)>),
    /// Items, with the name that an item has in XML.
    List {
        /// Element name of one item.
        item: String,
        /// The items.
        items: Vec<Node>,
    },
    /// Text.
    Str(String),
    /// An unsigned number.
    UInt(u64),
    /// A signed number.
    Int(i64),
    /// A number with a fraction. Not-a-number and infinities become JSON `null` and empty XML text.
    Float(f64),
    /// A real boolean: `true` without quotes.
    Bool(bool),
}

impl Node {
    /// An empty map.
    pub fn map() -> Self {
        Self::Map(Vec::new())
    }

    /// An empty list whose items are named `item` in XML.
    pub fn list(item: &str) -> Self {
        Self::List {
            item: item.to_owned(),
            items: Vec::new(),
        }
    }

    /// A list of anything that converts to a node.
    pub fn list_of<T: Into<Node>>(item: &str, values: impl IntoIterator<Item = T>) -> Self {
        Self::List {
            item: item.to_owned(),
            items: values.into_iter().map(Into::into).collect(),
        }
    }

    /// A boolean in the string form that Ceph uses for `protected` and `exists`.
    pub fn str_bool(value: bool) -> Self {
        Self::Str(value.to_string())
    }

    /// Adds a field to a map, for building in one expression. On anything but a map it does nothing.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Node>) -> Self {
        self.set(name, value);
        self
    }

    /// Adds a field if there is a value.
    #[must_use]
    pub fn with_some(self, name: &str, value: Option<impl Into<Node>>) -> Self {
        match value {
            Some(value) => self.with(name, value),
            None => self,
        }
    }

    /// Adds a field to a map in place.
    pub fn set(&mut self, name: &str, value: impl Into<Node>) {
        debug_assert!(matches!(self, Self::Map(_)), "fields belong to maps");
        if let Self::Map(fields) = self {
            fields.push((name.to_owned(), value.into()));
        }
    }

    /// Adds an item to a list, for building in one expression. On anything but a list it does nothing.
    #[must_use]
    pub fn push(mut self, value: impl Into<Node>) -> Self {
        self.add(value);
        self
    }

    /// Adds an item to a list in place.
    pub fn add(&mut self, value: impl Into<Node>) {
        debug_assert!(matches!(self, Self::List { .. }), "items belong to lists");
        if let Self::List { items, .. } = self {
            items.push(value.into());
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Map(fields) => Value::Object(
                fields
                    .iter()
                    .map(|(name, node)| (name.clone(), node.to_json()))
                    .collect::<Map<_, _>>(),
            ),
            Self::List { items, .. } => Value::Array(items.iter().map(Self::to_json).collect()),
            Self::Str(text) => Value::from(text.as_str()),
            Self::UInt(number) => Value::from(*number),
            Self::Int(number) => Value::from(*number),
            Self::Float(number) => Value::from(*number),
            Self::Bool(value) => Value::from(*value),
        }
    }
}

macro_rules! node_from {
    ($($from:ty => |$value:ident| $node:expr),* $(,)?) => {$(
        impl From<$from> for Node {
            fn from($value: $from) -> Self {
                $node
            }
        }
    )*};
}
node_from! {
    &str => |value| Node::Str(value.to_owned()),
    String => |value| Node::Str(value),
    &String => |value| Node::Str(value.clone()),
    u64 => |value| Node::UInt(value),
    u32 => |value| Node::UInt(value.into()),
    u8 => |value| Node::UInt(value.into()),
    usize => |value| Node::UInt(value as u64),
    i64 => |value| Node::Int(value),
    f64 => |value| Node::Float(value),
    bool => |value| Node::Bool(value),
}

/// A root name and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    root: String,
    value: Node,
}

impl Document {
    /// A document whose XML root element is `root`.
    pub fn new(root: &str, value: Node) -> Self {
        Self {
            root: root.to_owned(),
            value,
        }
    }

    /// The text for stdout, with its final newline (pretty XML ends with an empty line, as Ceph's does).
    /// [`OutputFormat::Plain`] gives nothing: plain text is the command's own.
    pub fn render(&self, format: OutputFormat) -> String {
        match format {
            OutputFormat::Plain => String::new(),
            OutputFormat::Json { pretty } => self.render_json(pretty),
            OutputFormat::Xml { pretty } => self.render_xml(pretty),
        }
    }

    fn render_json(&self, pretty: bool) -> String {
        let value = self.value.to_json();
        if !pretty {
            return format!("{value}\n");
        }
        // serde_json indents by two spaces; a line break inside a string is escaped, so leading blanks are all indent.
        let indented = |line: &str| format!("{}{line}\n", " ".repeat(line.len() - line.trim_start().len()));
        format!("{value:#}").lines().map(indented).collect()
    }

    fn render_xml(&self, pretty: bool) -> String {
        let mut out = Vec::new();
        let mut writer = if pretty {
            Writer::new_with_indent(&mut out, b' ', 1)
        } else {
            Writer::new(&mut out)
        };
        // As above: an in-memory writer does not fail.
        let written = write_xml(&mut writer, &self.root, &self.value);
        debug_assert!(written.is_ok(), "writing to memory");
        let mut text = String::from_utf8_lossy(&out).into_owned();
        text.push_str(if pretty { "\n\n" } else { "\n" });
        text
    }
}

fn write_xml(writer: &mut Writer<&mut Vec<u8>>, name: &str, node: &Node) -> std::io::Result<()> {
    let name = element_name(name);
    writer.write_event(Event::Start(BytesStart::new(name.as_str())))?;
    match node {
        Node::Map(fields) => {
            for (name, value) in fields {
                write_xml(writer, name, value)?;
            }
        }
        Node::List { item, items } => {
            for value in items {
                write_xml(writer, item, value)?;
            }
        }
        Node::Str(text) => write_text(writer, text)?,
        Node::UInt(number) => write_text(writer, &number.to_string())?,
        Node::Int(number) => write_text(writer, &number.to_string())?,
        Node::Float(number) if number.is_finite() => write_text(writer, &number.to_string())?,
        Node::Float(_) => write_text(writer, "")?,
        Node::Bool(value) => write_text(writer, if *value { "true" } else { "false" })?,
    }
    writer.write_event(Event::End(BytesEnd::new(name.as_str())))
}

/// Text goes through quick-xml's escaping; control characters, which XML 1.0 cannot hold, become `&#xNN;`.
fn write_text(writer: &mut Writer<&mut Vec<u8>>, text: &str) -> std::io::Result<()> {
    let mut escaped = String::with_capacity(text.len());
    for character in quick_xml::escape::escape(text).chars() {
        if character.is_control() && !matches!(character, '\n' | '\t') {
            escaped.push_str(&format!("&#x{:02x};", u32::from(character)));
        } else {
            escaped.push(character);
        }
    }
    writer.write_event(Event::Text(BytesText::from_escaped(escaped)))
}

/// Metadata keys become element names, so anything that XML does not allow in a name is replaced by `_`.
fn element_name(name: &str) -> String {
    let mut valid: String = name
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || matches!(c, '_' | '-' | '.') {
                c
            } else {
                '_'
            }
        })
        .collect();
    if !valid.starts_with(|c: char| c.is_alphabetic() || c == '_') {
        valid.insert(0, '_');
    }
    valid
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRETTY_XML: OutputFormat = OutputFormat::Xml { pretty: true };
    const PRETTY_JSON: OutputFormat = OutputFormat::Json { pretty: true };

    fn status() -> Document {
        let migration = Node::map()
            .with("source_pool_namespace", "")
            .with("source_spec", "{\"type\":\"raw\"}");
        Document::new(
            "status",
            Node::map()
                .with("watchers", Node::list("watcher"))
                .with("migration", migration),
        )
    }

    #[test]
    fn empty_lists_and_empty_texts_look_different_in_xml() {
        assert_eq!(
            status().render(PRETTY_XML),
            "<status>\n <watchers>\n </watchers>\n <migration>\n  <source_pool_namespace></source_pool_namespace>\n  \
             <source_spec>{&quot;type&quot;:&quot;raw&quot;}</source_spec>\n </migration>\n</status>\n\n"
        );
        assert!(
            status()
                .render(OutputFormat::Xml { pretty: false })
                .starts_with("<status><watchers></watchers>")
        );
    }

    #[test]
    fn json_keeps_the_order_of_fields() {
        assert_eq!(
            status().render(OutputFormat::Json { pretty: false }),
            "{\"watchers\":[],\"migration\":{\"source_pool_namespace\":\"\",\"source_spec\":\"{\\\"type\\\":\\\"raw\\\"}\"}}\n"
        );
        assert_eq!(Document::new("x", Node::map()).render(PRETTY_JSON), "{}\n");
        assert_eq!(Document::new("x", Node::list("y")).render(PRETTY_JSON), "[]\n");
    }

    #[test]
    fn booleans_come_in_both_of_cephs_forms() {
        let node = Node::map()
            .with("protected", Node::str_bool(true))
            .with("trash", false);
        let document = Document::new("image", node);
        assert_eq!(
            document.render(PRETTY_JSON),
            "{\n    \"protected\": \"true\",\n    \"trash\": false\n}\n"
        );
        assert_eq!(
            document.render(PRETTY_XML),
            "<image>\n <protected>true</protected>\n <trash>false</trash>\n</image>\n\n"
        );
    }

    #[test]
    fn hostile_metadata_cannot_break_the_xml() {
        let node = Node::map()
            .with("a b></metadatas>", "<&>'\"\u{1}")
            .with("1st", "x")
            .with("", "y");
        let text = Document::new("metadatas", node).render(OutputFormat::Xml { pretty: false });
        assert_eq!(
            text,
            "<metadatas><a_b___metadatas_>&lt;&amp;&gt;&apos;&quot;&#x01;</a_b___metadatas_><_1st>x</_1st><_>y</_></metadatas>\n"
        );
    }

    #[test]
    fn numbers_keep_their_full_range() {
        let node = Node::map()
            .with("cookie", u64::MAX)
            .with("delta", -1i64)
            .with("ratio", 0.5)
            .with("bad", f64::NAN);
        let document = Document::new("x", node);
        assert_eq!(
            document.render(OutputFormat::Json { pretty: false }),
            "{\"cookie\":18446744073709551615,\"delta\":-1,\"ratio\":0.5,\"bad\":null}\n"
        );
    }
}
