//! Statements: written once where both databases take the same words, twice where they don't, and run on whichever it is.

use std::fmt;

use serde::Serialize;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Encode, FromRow, Postgres, SqlSafeStr as _, SqlStr};
use sqlx::{Sqlite, Type};

use super::{Conn, Joined};

/// A statement in the words of both databases; its parameters are `$1`, `$2` and so on.
#[derive(Clone, Copy, Debug)]
pub struct Sql {
    sqlite: &'static str,
    postgres: &'static str,
}

impl Sql {
    /// The same words for both.
    pub const fn same(text: &'static str) -> Self {
        Self::of(text, text)
    }

    /// Words for each.
    pub const fn of(sqlite: &'static str, postgres: &'static str) -> Self {
        Self { sqlite, postgres }
    }

    /// The words for SQLite.
    pub const fn sqlite(&self) -> &'static str {
        self.sqlite
    }
}

/// A statement that differs in one place: where a column is looked for in a list that is one parameter, so that it is one
/// prepared statement for any number; or where rows are locked, which SQLite's writers, being alone, needn't do.
macro_rules! sql {
    ($before:literal, in_list($parameter:literal) $(, $after:literal)?) => {
        $crate::db::Sql::of(
            concat!($before, " IN (SELECT value FROM json_each($", $parameter, "))" $(, $after)?),
            concat!($before, " = ANY($", $parameter, ")" $(, $after)?),
        )
    };
    ($before:literal, for_update) => {
        $crate::db::Sql::of($before, concat!($before, " FOR UPDATE"))
    };
}
pub(crate) use sql;

/// What can be read from a row of either database.
pub trait Row: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}

impl<R> Row for R where R: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin
{}

/// A statement with its parameters, on the connection that it will run on.
#[must_use]
pub struct Query<'c> {
    on: On<'c>,
    /// Why a parameter couldn't be bound.
    problem: Option<BoxDynError>,
}

enum On<'c> {
    Sqlite(&'c mut SqliteConnection, SqlStr, SqliteArguments),
    Postgres(&'c mut PgConnection, SqlStr, PgArguments),
}

impl Conn {
    /// A statement to run here.
    pub fn query(&mut self, sql: Sql) -> Query<'_> {
        let (sqlite, postgres) = (sql.sqlite, sql.postgres);
        self.run(SqlStr::from_static(sqlite), SqlStr::from_static(postgres))
    }

    /// A statement that was put together, of nothing that came from outside.
    pub(crate) fn assembled(&mut self, sql: String) -> Query<'_> {
        let sql = AssertSqlSafe(sql).into_sql_str();
        self.run(sql.clone(), sql)
    }

    fn run(&mut self, sqlite: SqlStr, postgres: SqlStr) -> Query<'_> {
        let on = match self {
            Self::Sqlite(conn) => On::Sqlite(conn, sqlite, SqliteArguments::default()),
            Self::Postgres(conn) => On::Postgres(conn, postgres, PgArguments::default()),
        };
        Query { on, problem: None }
    }
}

impl Query<'_> {
    /// Binds the next parameter.
    pub fn bind<'t, T>(mut self, value: T) -> Self
    where
        T: Encode<'t, Sqlite> + Type<Sqlite> + Encode<'t, Postgres> + Type<Postgres> + 't,
    {
        let bound = match &mut self.on {
            On::Sqlite(_, _, arguments) => sqlx::Arguments::add(arguments, value),
            On::Postgres(_, _, arguments) => arguments.add(value),
        };
        if let Err(error) = bound {
            self.problem.get_or_insert(error);
        }
        self
    }

    /// Binds a list of ids as the next parameter.
    pub fn bind_ids<I: Copy + Into<i64>>(self, ids: &[I]) -> Self {
        self.bind_list(ids.iter().map(|&id| id.into()).collect::<Vec<i64>>())
    }

    /// Binds a list as the next parameter: as an array, or as JSON for a database that has none.
    pub fn bind_list<T>(mut self, list: Vec<T>) -> Self
    where
        T: Serialize,
        Vec<T>: for<'t> Encode<'t, Postgres> + Type<Postgres>,
    {
        let bound = match &mut self.on {
            On::Sqlite(_, _, arguments) => match serde_json::to_string(&list) {
                Ok(list) => sqlx::Arguments::add(arguments, list),
                Err(error) => Err(error.into()),
            },
            On::Postgres(_, _, arguments) => arguments.add(list),
        };
        if let Err(error) = bound {
            self.problem.get_or_insert(error);
        }
        self
    }

    /// Runs it, and answers every row.
    pub async fn all<R: Row>(self) -> sqlx::Result<Vec<R>> {
        match self.bound()? {
            On::Sqlite(conn, sql, arguments) => {
                let query = sqlx::query_as_with::<Sqlite, R, _>(sql, arguments);
                query.fetch_all(conn).await
            }
            On::Postgres(conn, sql, arguments) => {
                let query = sqlx::query_as_with::<Postgres, R, _>(sql, arguments);
                query.fetch_all(conn).await
            }
        }
    }

    /// Runs it, and answers the row if there is one.
    pub async fn optional<R: Row>(self) -> sqlx::Result<Option<R>> {
        match self.bound()? {
            On::Sqlite(conn, sql, arguments) => {
                let query = sqlx::query_as_with::<Sqlite, R, _>(sql, arguments);
                query.fetch_optional(conn).await
            }
            On::Postgres(conn, sql, arguments) => {
                let query = sqlx::query_as_with::<Postgres, R, _>(sql, arguments);
                query.fetch_optional(conn).await
            }
        }
    }

    /// Runs it, and answers the one row.
    pub async fn one<R: Row>(self) -> sqlx::Result<R> {
        self.optional().await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// Runs it, and answers its one column.
    pub async fn column<T>(self) -> sqlx::Result<Vec<T>>
    where
        (T,): Row,
    {
        let rows: Vec<(T,)> = self.all().await?;
        Ok(rows.into_iter().map(|(value,)| value).collect())
    }

    /// Runs it, and answers the value if there is one.
    pub async fn value<T>(self) -> sqlx::Result<Option<T>>
    where
        (T,): Row,
    {
        let row: Option<(T,)> = self.optional().await?;
        Ok(row.map(|(value,)| value))
    }

    /// Runs a left join of one row, and answers what joined it: nothing, if that row is alone, `None` if it isn't there.
    pub async fn joined<R>(self) -> sqlx::Result<Option<Vec<R>>>
    where
        Joined<R>: Row,
    {
        let rows: Vec<Joined<R>> = self.all().await?;
        Ok((!rows.is_empty()).then(|| rows.into_iter().filter_map(|row| row.0).collect()))
    }

    /// Runs it, and answers how many rows it changed.
    pub async fn execute(self) -> sqlx::Result<u64> {
        match self.bound()? {
            On::Sqlite(conn, sql, arguments) => {
                let query = sqlx::query_with::<Sqlite, _>(sql, arguments);
                Ok(query.execute(conn).await?.rows_affected())
            }
            On::Postgres(conn, sql, arguments) => {
                let query = sqlx::query_with::<Postgres, _>(sql, arguments);
                Ok(query.execute(conn).await?.rows_affected())
            }
        }
    }
}

impl<'c> Query<'c> {
    fn bound(self) -> sqlx::Result<On<'c>> {
        match self.problem {
            None => Ok(self.on),
            Some(error) => Err(sqlx::Error::Encode(error)),
        }
    }
}

impl fmt::Debug for Query<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (On::Sqlite(_, sql, _) | On::Postgres(_, sql, _)) = &self.on;
        f.debug_tuple("Query").field(&sql.as_str()).finish()
    }
}
