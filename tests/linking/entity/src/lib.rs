//! What is written: a crate that every program of a service names.

use larder_core::{Entity, FieldBits, FieldSet, Source};

/// A lamp, on or off.
#[derive(Clone, Debug)]
pub struct Lamp {
    /// Which.
    pub id: u64,
    /// Whether it is on.
    pub is_on: bool,
}

/// The fields of a [`Lamp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LampField {
    /// Whether it is on.
    IsOn,
}

impl FieldSet for LampField {
    const ALL: &'static [Self] = &[Self::IsOn];

    fn name(self) -> &'static str {
        "is_on"
    }
}

impl Entity for Lamp {
    const NAME: &'static str = "lamp";
    type Id = u64;
    type Field = LampField;

    fn id(&self) -> u64 {
        self.id
    }

    fn diff(&self, other: &Self) -> FieldBits {
        FieldBits::of([(LampField::IsOn, self.is_on != other.is_on)])
    }
}

/// Where lamps are.
#[derive(Clone, Debug)]
pub struct House;

impl Source for House {
    type Conn = ();
    type Guard = Box<()>;
    type Error = std::convert::Infallible;

    async fn acquire(&self) -> Result<Box<()>, Self::Error> {
        Ok(Box::new(()))
    }
}
