//! Which data sets a cache knows, by type and by name.

use std::any::TypeId;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use super::Dataset;
use super::accessor::{Accessor, AnyAccessor, Setting};
use crate::contract::{Error, ErrorKind};

/// The data sets of one cache; or those that were registered, and those that weren't, apart.
#[derive(Default)]
pub(crate) struct Accessors {
    by_type: HashMap<TypeId, Arc<dyn AnyAccessor>, BuildHasherDefault<TypeIdHasher>>,
    by_name: HashMap<&'static str, TypeId>,
}

impl Accessors {
    /// What all reads of this data set share.
    pub(crate) fn of<D: Dataset>(&self) -> Option<&Arc<dyn AnyAccessor>> {
        self.by_type.get(&TypeId::of::<D>())
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Arc<dyn AnyAccessor>> {
        self.by_type.get(self.by_name.get(name)?)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<dyn AnyAccessor>> {
        self.by_type.values()
    }

    /// Makes the accessor of this data set, unless it is there. Where it can't be cached as it is, or where `others`
    /// have its name too, it has a problem.
    pub(crate) fn add<D: Dataset>(
        &mut self,
        setting: &Setting<'_>,
        others: &Self,
    ) -> Arc<dyn AnyAccessor> {
        if let Some(known) = self.of::<D>() {
            return Arc::clone(known);
        }
        let mut accessor = Accessor::<D>::new(setting);
        if self.named(D::NAME).or(others.named(D::NAME)).is_some() {
            accessor.marshaller = Err(Error::new(
                ErrorKind::Config,
                format!(
                    "two data sets have the NAME `{}`, the second is {}; they would read each other's entries",
                    D::NAME,
                    std::any::type_name::<D>()
                ),
            ));
        } else {
            self.by_name.insert(D::NAME, TypeId::of::<D>());
        }
        let accessor: Arc<dyn AnyAccessor> = Arc::new(accessor);
        self.by_type
            .insert(TypeId::of::<D>(), Arc::clone(&accessor));
        accessor
    }
}

/// Takes a type's id for its own hash, which it is.
#[derive(Default)]
pub(super) struct TypeIdHasher(u64);

impl Hasher for TypeIdHasher {
    fn write(&mut self, bytes: &[u8]) {
        // Not reached while a `TypeId` is hashed as one integer; right for whatever it becomes.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
