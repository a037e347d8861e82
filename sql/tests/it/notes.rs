//! Notes: one table, one entity, one data set, in both databases. For tests and benchmarks.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use larder_core::{
    Dataset, Entity, FieldBits, FieldSet, FlushOn, Lifetime, LockRow, NoTier, Plain, Rows,
    Transactional,
};
use larder_sqlx::{Postgres, Sqlite};
use sqlx::postgres::PgConnection;
use sqlx::sqlite::SqliteConnection;

/// The table, with the note 7.
pub(crate) const NOTES: &str = "CREATE TABLE note (id BIGINT PRIMARY KEY, text TEXT NOT NULL); \
                                INSERT INTO note VALUES (7, 'before')";

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Note {
    pub(crate) id: i64,
    pub(crate) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoteField {
    Text,
}

impl FieldSet for NoteField {
    const ALL: &'static [Self] = &[Self::Text];

    fn name(self) -> &'static str {
        "text"
    }
}

impl Entity for Note {
    const NAME: &'static str = "note";
    type Id = i64;
    type Field = NoteField;

    fn id(&self) -> i64 {
        self.id
    }

    fn diff(&self, other: &Self) -> FieldBits {
        FieldBits::of([(NoteField::Text, self.text != other.text)])
    }
}

/// A source whose database has notes.
pub(crate) trait HasNotes: Transactional<Error = sqlx::Error> {
    fn note(
        conn: &mut Self::Conn,
        id: i64,
        is_locked: bool,
    ) -> impl Future<Output = Result<Option<String>, sqlx::Error>> + Send;

    fn write(
        conn: &mut Self::Conn,
        id: i64,
        text: &str,
    ) -> impl Future<Output = Result<(), sqlx::Error>> + Send;
}

impl HasNotes for Postgres {
    async fn note(
        conn: &mut PgConnection,
        id: i64,
        is_locked: bool,
    ) -> Result<Option<String>, sqlx::Error> {
        let statement = match is_locked {
            true => "SELECT text FROM note WHERE id = $1 FOR UPDATE",
            false => "SELECT text FROM note WHERE id = $1",
        };
        let text = sqlx::query_scalar(statement).bind(id);
        text.fetch_optional(conn).await
    }

    async fn write(conn: &mut PgConnection, id: i64, text: &str) -> Result<(), sqlx::Error> {
        let update = sqlx::query("UPDATE note SET text = $2 WHERE id = $1");
        update.bind(id).bind(text).execute(conn).await?;
        Ok(())
    }
}

impl HasNotes for Sqlite {
    async fn note(
        conn: &mut SqliteConnection,
        id: i64,
        _: bool,
    ) -> Result<Option<String>, sqlx::Error> {
        let text = sqlx::query_scalar("SELECT text FROM note WHERE id = ?").bind(id);
        text.fetch_optional(conn).await
    }

    async fn write(conn: &mut SqliteConnection, id: i64, text: &str) -> Result<(), sqlx::Error> {
        let update = sqlx::query("UPDATE note SET text = ?2 WHERE id = ?1");
        update.bind(id).bind(text).execute(conn).await?;
        Ok(())
    }
}

impl<S: HasNotes> LockRow<S> for Note {
    async fn lock(conn: &mut S::Conn, id: &i64) -> Result<Option<Self>, sqlx::Error> {
        let text = S::note(conn, *id, true).await?;
        Ok(text.map(|text| Self { id: *id, text }))
    }
}

pub(crate) struct NoteById<S>(PhantomData<S>);

impl<S: HasNotes> Dataset for NoteById<S> {
    const NAME: &'static str = "note_by_id";
    const LIFETIME: Lifetime = Lifetime::Ttl(Duration::from_secs(3600));
    type Source = S;
    type Key = i64;
    type Value = String;
    type Form = Plain;
    type Tier = NoTier;
    type Error = Arc<sqlx::Error>;

    fn flush_on(plan: &mut FlushOn<Self>) {
        plan.entity([NoteField::Text], |note: &Note| [note.id]);
    }

    async fn load(conn: &mut S::Conn, ids: Vec<i64>) -> Result<Rows<Self>, Arc<sqlx::Error>> {
        let mut rows = HashMap::new();
        for id in ids {
            if let Some(text) = S::note(conn, id, false).await? {
                rows.insert(id, text);
            }
        }
        Ok(rows.into_iter().collect())
    }
}
