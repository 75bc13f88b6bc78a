//! Slots that give out ids: what an id names is found in constant time, and a closed id never names anything again.

use crate::backend::Id;

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values under ids of slot and generation. Memory grows with the most values ever held at once and is kept.
pub(super) struct Table<Tag, T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    tag: std::marker::PhantomData<fn() -> Tag>,
}

impl<Tag, T> Table<Tag, T> {
    pub(super) fn new() -> Table<Tag, T> {
        Table { slots: Vec::new(), free: Vec::new(), tag: std::marker::PhantomData }
    }

    pub(super) fn insert(&mut self, value: T) -> Id<Tag> {
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, value: None });
            u32::try_from(self.slots.len() - 1)
                .expect("fewer than 2^32 values, since each is bounded by a descriptor or a job")
        });
        let slot = &mut self.slots[number as usize];
        slot.value = Some(value);
        Id::new(number, slot.generation)
    }

    pub(super) fn find(&self, id: Id<Tag>) -> Option<&T> {
        let slot = self.slots.get(id.slot as usize)?;
        slot.value.as_ref().filter(|_| slot.generation == id.generation)
    }

    pub(super) fn remove(&mut self, id: Id<Tag>) -> Option<T> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
        Some(value)
    }

    /// Takes out everything `unwanted` says so of.
    pub(super) fn remove_where(&mut self, mut unwanted: impl FnMut(&T) -> bool, mut removed: impl FnMut(T)) {
        for (number, slot) in self.slots.iter_mut().enumerate() {
            if let Some(value) = slot.value.take_if(|value| unwanted(value)) {
                slot.generation = slot.generation.wrapping_add(1);
                self.free.push(number as u32);
                removed(value);
            }
        }
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(|slot| slot.value.as_mut())
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    enum Tag {}

    #[test]
    fn an_id_names_nothing_once_its_value_is_gone_and_the_slot_is_used_again() {
        let mut table: Table<Tag, &str> = Table::new();
        let first = table.insert("first");
        assert_eq!(table.remove(first), Some("first"));
        let second = table.insert("second");
        assert_eq!(first.slot, second.slot);
        assert_eq!(table.find(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.find(second), Some(&"second"));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn removing_by_condition_makes_the_ids_stale() {
        let mut table: Table<Tag, u32> = Table::new();
        let ids: Vec<_> = (0..10).map(|n| table.insert(n)).collect();
        let mut gone = Vec::new();
        table.remove_where(|n| n % 2 == 0, |n| gone.push(n));
        assert_eq!(gone, [0, 2, 4, 6, 8]);
        assert_eq!(table.len(), 5);
        assert!(table.find(ids[0]).is_none() && table.find(ids[1]).is_some());
    }
}
