//! The part of the random sequence that has to do with groups.

use rand::RngExt;

use super::steps::Steps;
use super::world::{Group, World};

impl Steps {
    /// A command on a group; `None` where there is nothing to do it with.
    pub(super) fn of_groups(&mut self, world: &World) -> Option<String> {
        if world.groups.len() < 2 && (world.groups.is_empty() || self.one_in(8)) {
            return Some(format!("group create {}", self.new_group()));
        }
        let group = self.of(&world.groups)?;
        let name = &group.name;
        Some(match self.rng().random_range(0..20) {
            0..6 => {
                let image = &self.image(world)?.name;
                format!("group image add {name} {image}")
            }
            6..8 => format!("group image rm {name} {}", self.of(&group.images)?),
            8..13 => format!("group snap create {name}@s{}", self.number()),
            13 => format!("group snap rename {} s{}", self.group_snap(group)?, self.number()),
            14..16 => format!("group snap rm {}", self.group_snap(group)?),
            16..18 => format!("group snap rollback --no-progress {}", self.group_snap(group)?),
            18 => {
                let sign = name.split('/').next()?;
                format!("group rename {name} {sign}/g{}", self.number())
            }
            _ => format!("group rm {name}"),
        })
    }

    fn new_group(&mut self) -> String {
        format!("{}/g{}", self.sign(), self.number())
    }

    fn group_snap(&mut self, group: &Group) -> Option<String> {
        let snap = self.of(&group.snaps)?;
        Some(format!("{}@{snap}", group.name))
    }
}
