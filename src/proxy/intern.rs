//! Names become dense numbers here, once, and nowhere else.
//!
//! [`ProgramNames`] gives ids back when a program ends; [`ToolNames`] only grows, up to a bound.

use std::collections::HashMap;

use crate::policy::{ProgramId, ToolId};

/// The most tool names told apart; later ones share [`ToolId::OTHER`].
pub const MAX_TOOLS: usize = 1024;

/// Program name ↔ [`ProgramId`], with ids used again after release.
#[derive(Debug, Default)]
pub struct ProgramNames {
    ids: HashMap<Box<str>, ProgramId>,
    free: Vec<ProgramId>,
    issued: u32,
}

impl ProgramNames {
    /// The id of a known program.
    pub fn get(&self, name: &str) -> Option<ProgramId> {
        self.ids.get(name).copied()
    }

    /// Gives `name`, which must not be known, the lowest id that is free.
    pub fn insert(&mut self, name: &str) -> ProgramId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.issued += 1;
            ProgramId(self.issued - 1)
        });
        let known = self.ids.insert(name.into(), id);
        debug_assert!(known.is_none(), "{name} has an id already");
        id
    }

    /// Forgets `name`; its id may be given to another program.
    pub fn remove(&mut self, name: &str) {
        if let Some(id) = self.ids.remove(name) {
            self.free.push(id);
        }
    }

    /// Programs known now.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether no program is known.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Tool name → [`ToolId`], at most [`MAX_TOOLS`] of them.
#[derive(Debug, Default)]
pub struct ToolNames {
    ids: HashMap<Box<str>, ToolId>,
}

impl ToolNames {
    /// The id of a tool, new or known; [`ToolId::OTHER`] for a new one past the bound.
    pub fn intern(&mut self, name: &str) -> ToolId {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        if self.ids.len() >= MAX_TOOLS {
            return ToolId::OTHER;
        }
        let id = u16::try_from(self.ids.len()).map_or(ToolId::OTHER, ToolId);
        self.ids.insert(name.into(), id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_used_again_only_after_its_program_is_gone() {
        let mut names = ProgramNames::default();
        let a = names.insert("a");
        let b = names.insert("b");
        assert_ne!(a, b);
        names.remove("a");
        assert_eq!((names.get("a"), names.get("b")), (None, Some(b)));
        assert_eq!(names.insert("c"), a);
        assert_eq!(names.len(), 2);
    }

    #[test]
    fn tools_past_the_bound_share_one_id() {
        let mut names = ToolNames::default();
        for i in 0..MAX_TOOLS {
            assert_ne!(names.intern(&i.to_string()), ToolId::OTHER);
        }
        assert_eq!(names.intern("one too many"), ToolId::OTHER);
        assert_eq!(names.intern("0"), ToolId(0));
    }
}
