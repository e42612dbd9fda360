//! [`Setting`]: the few words of configuration that a store keeps for all its clients. Does not know what any of them means.

use crate::error::{Errno, Result, StoreError};

/// A setting that a store keeps for its clients.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Setting {
    /// Whom it is for: `global`, `client` or `client.ID`. The more particular comes first.
    pub section: String,
    /// Its name (`rbd_...`).
    pub name: String,
    /// Its value, as text.
    pub value: String,
}

impl Setting {
    /// Longest section, name or value, in bytes.
    pub const BYTES_MAX: usize = 4096;
    /// Who a client is that has no other name.
    pub const ADMIN: &'static str = "client.admin";

    /// `EINVAL` unless section, name and value are such as a store keeps.
    pub fn check(&self) -> Result<()> {
        let section = self.section.as_str();
        let is_section = matches!(section, "global" | "client") || section.starts_with("client.");
        let is_kept = |text: &str| text.len() <= Self::BYTES_MAX && !text.contains('\0');
        let is_sound = is_section
            && !section.contains('/')
            && !self.name.is_empty()
            && [section, &self.name, &self.value].into_iter().all(is_kept);
        match is_sound {
            true => Ok(()),
            false => Err(StoreError::new(
                Errno::EINVAL,
                format!("keep setting '{}' = '{}' for '{section}'", self.name, self.value),
            )),
        }
    }

    /// The value that holds for the client `entity` (`client.ID`) among `settings`.
    pub fn effective<'a>(settings: &'a [Self], entity: &str, name: &str) -> Option<&'a str> {
        let sections = [entity, "client", "global"];
        let of = |section: &str| {
            let found = settings
                .iter()
                .find(|one| one.section == section && one.name == name);
            found.map(|one| one.value.as_str())
        };
        sections.into_iter().find_map(of)
    }
}
