//! A table whose ids go stale: slot and generation, as every backend has one.

use crate::backend::{Errno, Id};

/// Things under ids.
pub(super) struct Slots<T> {
    slots: Vec<(u32, Option<T>)>,
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots { slots: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// Puts something into the first free slot: old slots are soon used again, so that stale ids meet new things.
    pub(super) fn insert<Tag>(&mut self, value: T) -> Id<Tag> {
        let free = self.slots.iter().position(|(_, slot)| slot.is_none());
        let slot = free.unwrap_or_else(|| {
            self.slots.push((0, None));
            self.slots.len() - 1
        });
        self.slots[slot].1 = Some(value);
        Id::new(slot as u32, self.slots[slot].0)
    }

    pub(super) fn get<Tag>(&self, id: Id<Tag>) -> Result<&T, Errno> {
        match self.slots.get(id.slot as usize) {
            Some((generation, Some(value))) if *generation == id.generation => Ok(value),
            _ => Err(Errno::STALE_ID),
        }
    }

    pub(super) fn get_mut<Tag>(&mut self, id: Id<Tag>) -> Result<&mut T, Errno> {
        match self.slots.get_mut(id.slot as usize) {
            Some((generation, Some(value))) if *generation == id.generation => Ok(value),
            _ => Err(Errno::STALE_ID),
        }
    }

    pub(super) fn remove<Tag>(&mut self, id: Id<Tag>) -> Result<T, Errno> {
        self.get(id)?;
        let (generation, value) = &mut self.slots[id.slot as usize];
        *generation += 1;
        value.take().ok_or(Errno::STALE_ID)
    }

    /// Drops what `keep` does not want.
    pub(super) fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        for (generation, slot) in &mut self.slots {
            if slot.as_ref().is_some_and(|value| !keep(value)) {
                *generation += 1;
                *slot = None;
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|(_, slot)| slot.as_ref())
    }
}
