//! The database in memory passes the suite that PostgreSQL and SQLite pass.

use std::time::Duration;

use async_trait::async_trait;
use larder_core::conformance::Database as Subject;

use super::ledger::{Conn, Database, Ledger};
use super::office::Stream;

#[async_trait]
impl Subject for Database {
    type Source = Ledger;

    async fn source(&self) -> Ledger {
        self.line()
    }

    async fn write(&self, conn: &mut Conn) {
        let id = conn.all::<Stream>().len() as u64 + self.next();
        let row = Stream {
            id,
            name: "a row".to_owned(),
        };
        conn.put(&row).await.expect("it is a transaction");
    }

    async fn written(&self) -> u64 {
        let conn = larder_core::Source::acquire(&self.line()).await;
        conn.expect("it is there").all::<Stream>().len() as u64
    }

    async fn advance(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

larder_core::database_conformance! {
    #[tokio::test(start_paused = true)]
    in_memory => Database::new();
}
