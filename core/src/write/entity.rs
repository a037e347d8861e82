//! Entities: what the application writes, and which of its fields a write changed.

use std::fmt;
use std::hash::Hash;
use std::ops::BitOr;

use crate::Source;

/// Something the application writes: a row, or what it is to the application.
///
/// What is cached of it is declared elsewhere, by the data sets that show it: see
/// [`Dataset::flush_on`](crate::Dataset::flush_on).
///
/// ```
/// use larder_core::{Entity, FieldBits, FieldSet};
///
/// #[derive(Clone)]
/// struct User { id: u64, email: String, name: String }
///
/// #[derive(Clone, Copy, Debug, PartialEq, Eq)]
/// enum UserField { Email, Name }
///
/// impl FieldSet for UserField {
///     const ALL: &'static [Self] = &[Self::Email, Self::Name];
///
///     fn name(self) -> &'static str {
///         match self {
///             Self::Email => "email",
///             Self::Name => "name",
///         }
///     }
/// }
///
/// impl Entity for User {
///     const NAME: &'static str = "user";
///     type Id = u64;
///     type Field = UserField;
///
///     fn id(&self) -> u64 {
///         self.id
///     }
///
///     fn diff(&self, other: &Self) -> FieldBits {
///         FieldBits::of([
///             (UserField::Email, self.email != other.email),
///             (UserField::Name, self.name != other.name),
///         ])
///     }
/// }
///
/// let before = User { id: 7, email: "ada@example.com".into(), name: "Ada".into() };
/// let after = User { name: "Ada L.".into(), ..before.clone() };
/// assert_eq!(before.diff(&after), FieldBits::from([UserField::Name]));
/// ```
pub trait Entity: Sized + Send + Sync + 'static {
    /// Names the entity in plans, errors and the outbox: 1 to 64 characters of `[A-Za-z0-9._-]`.
    const NAME: &'static str;

    /// The fields that writes without images may change, by [`Change::rows`](crate::Change::rows): every data set that
    /// watches one of them is keyed by the primary key alone.
    const SET_BASED: FieldBits = FieldBits::NONE;

    /// The primary key.
    type Id: Clone + Eq + Hash + fmt::Debug + Send + Sync + 'static;
    /// The fields that data sets may watch.
    type Field: FieldSet;

    /// The primary key of this image.
    fn id(&self) -> Self::Id;

    /// The fields in which two images of one entity differ.
    fn diff(&self, other: &Self) -> FieldBits;

    /// Stands for the shape of images that are stored as they are, where it can't be derived from serde: a type with a
    /// validating constructor inside, say. The derive tells it from the fields.
    fn shape() -> Option<u64> {
        None
    }
}

/// An entity that a transaction can read under a row lock, so that its image before the write is exact.
pub trait LockRow<S: Source>: Entity {
    /// Reads the row and locks it until the transaction ends: `SELECT … FOR UPDATE`; on SQLite, whose writers are alone
    /// from `BEGIN IMMEDIATE` on, a plain `SELECT`. `None` if there is none.
    fn lock(
        conn: &mut S::Conn,
        id: &Self::Id,
    ) -> impl Future<Output = Result<Option<Self>, S::Error>> + Send;
}

/// The fields of an entity: an enum without data, of at most 128 variants.
pub trait FieldSet: Copy + Eq + fmt::Debug + Send + Sync + 'static {
    /// All of them; a field's place here is its bit.
    const ALL: &'static [Self];

    /// The field as plans show it.
    fn name(self) -> &'static str;
}

/// A set of fields of one entity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FieldBits(u128);

impl FieldBits {
    /// No field.
    pub const NONE: Self = Self(0);
    /// Every field: what creation and deletion change.
    pub const ALL: Self = Self(u128::MAX);

    /// Those fields whose condition holds.
    pub fn of<F: FieldSet>(fields: impl IntoIterator<Item = (F, bool)>) -> Self {
        let changed = fields.into_iter().filter(|(_, changed)| *changed);
        changed.map(|(field, _)| field).collect()
    }

    /// The fields at these places of [`FieldSet::ALL`]: for constants, where nothing else can be called. Write a place as
    /// `UserField::Name as usize`, with variants in the order of `ALL`, and it moves along with them.
    ///
    /// # Panics
    ///
    /// If a place is 128 or higher.
    pub const fn at<const N: usize>(places: [usize; N]) -> Self {
        let mut bits = 0;
        let mut nth = 0;
        while nth < N {
            bits |= 1 << places[nth];
            nth += 1;
        }
        Self(bits)
    }

    /// Whether both have a field.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether every field of the other one is in this.
    pub const fn contains(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// Whether there is no field in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names of the fields in it.
    pub(crate) fn names<F: FieldSet>(self) -> Vec<&'static str> {
        let fields = F::ALL.iter().enumerate();
        let within = fields.filter(|(place, _)| self.0 >> place & 1 == 1);
        within.map(|(_, field)| field.name()).collect()
    }
}

impl<F: FieldSet> FromIterator<F> for FieldBits {
    fn from_iter<I: IntoIterator<Item = F>>(fields: I) -> Self {
        let bit = |field: F| {
            let place = F::ALL.iter().position(|known| *known == field);
            // A field that isn't in the list is taken for all of them: a flush too many harms nobody.
            place.map_or(Self::ALL, |place| Self(1 << place.min(127)))
        };
        fields.into_iter().map(bit).fold(Self::NONE, BitOr::bitor)
    }
}

impl<F: FieldSet> From<F> for FieldBits {
    fn from(field: F) -> Self {
        [field].into()
    }
}

impl<F: FieldSet, const N: usize> From<[F; N]> for FieldBits {
    fn from(fields: [F; N]) -> Self {
        fields.into_iter().collect()
    }
}

impl BitOr for FieldBits {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Debug for FieldBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FieldBits({:#b})", self.0)
    }
}
