//! How values come out of rows and go into statements, on either database.
//!
//! sqlx's derives say the same, and are built with a second copy of both drivers; these two macros are all that is
//! needed here.

use serde::de::DeserializeOwned;
use sqlx::{ColumnIndex, FromRow, Row, ValueRef as _};

/// A newtype in a column: bound and read like what is in it.
macro_rules! column {
    ($type:ident($stored:ty)) => {
        impl<DB: sqlx::Database> sqlx::Type<DB> for $type
        where
            $stored: sqlx::Type<DB>,
        {
            fn type_info() -> DB::TypeInfo {
                <$stored as sqlx::Type<DB>>::type_info()
            }

            fn compatible(ty: &DB::TypeInfo) -> bool {
                <$stored as sqlx::Type<DB>>::compatible(ty)
            }
        }

        impl<'q, DB: sqlx::Database> sqlx::Encode<'q, DB> for $type
        where
            $stored: sqlx::Encode<'q, DB>,
        {
            fn encode_by_ref(
                &self,
                buffer: &mut DB::ArgumentBuffer,
            ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
                self.0.encode_by_ref(buffer)
            }
        }

        impl<'r, DB: sqlx::Database> sqlx::Decode<'r, DB> for $type
        where
            $stored: sqlx::Decode<'r, DB>,
        {
            fn decode(value: DB::ValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
                <$stored as sqlx::Decode<'r, DB>>::decode(value).map(Self)
            }
        }
    };
}
pub(crate) use column;

/// A struct whose fields are columns of the same names; those behind `json` are texts in JSON.
macro_rules! row {
    ($type:ident: $($field:ident),+ $(; json $($json:ident),+)?) => {
        $crate::db::row!(on sqlx::sqlite::SqliteRow, $type: $($field),+ $(; json $($json),+)?);
        $crate::db::row!(on sqlx::postgres::PgRow, $type: $($field),+ $(; json $($json),+)?);
    };
    (on $row:ty, $type:ident: $($field:ident),+ $(; json $($json:ident),+)?) => {
        impl sqlx::FromRow<'_, $row> for $type {
            fn from_row(row: &$row) -> sqlx::Result<Self> {
                use sqlx::Row as _;
                Ok(Self {
                    $($field: row.try_get(stringify!($field))?,)+
                    $($($json: $crate::db::json(row.try_get(stringify!($json))?)?,)+)?
                })
            }
        }
    };
}
pub(crate) use row;

/// What this text says in JSON.
pub(crate) fn json<T: DeserializeOwned>(text: &str) -> sqlx::Result<T> {
    serde_json::from_str(text).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// A row of a left join, of which the right side may be missing: then its first column is null.
#[derive(Debug)]
pub struct Joined<R>(pub(super) Option<R>);

impl<'r, W, R> FromRow<'r, W> for Joined<R>
where
    W: Row,
    R: FromRow<'r, W>,
    usize: ColumnIndex<W>,
{
    fn from_row(row: &'r W) -> sqlx::Result<Self> {
        let is_missing = row.try_get_raw(0)?.is_null();
        let joined = (!is_missing).then(|| R::from_row(row));
        joined.transpose().map(Self)
    }
}
