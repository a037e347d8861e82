//! What goes over TLS to a memcached, so that it can't fall asleep over it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// The longest record of TLS, and what a server reads at once.
const RECORD: usize = 16 << 10;

/// Ends a write of several records with one of a single byte.
///
/// Before 1.6.39 a memcached that has read a value to its end goes to sleep until its socket is readable, though OpenSSL
/// may have the next commands already, out of the record in which the value ended: a pipeline of stores would hang. A
/// record that is still in the socket wakes it. One byte can't be the end of a value and the beginning of something
/// else, so behind it nothing is left over. What fits into one record is read as a whole, and needs none of this.
pub(super) struct Records<W> {
    stream: W,
    /// Something was written since the last flush.
    has_begun: bool,
}

impl<W> Records<W> {
    pub(super) fn new(stream: W) -> Self {
        Self {
            stream,
            has_begun: false,
        }
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for Records<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let is_alone = !self.has_begun && bytes.len() <= RECORD;
        let now = match bytes.split_last() {
            Some((_, before)) if !is_alone && !before.is_empty() => before,
            _ => bytes,
        };
        let count = ready!(Pin::new(&mut self.stream).poll_write(cx, now))?;
        self.has_begun = true;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.has_begun = false;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Notes the length of every write.
    #[derive(Default)]
    struct Lengths(Vec<usize>);

    impl AsyncWrite for Lengths {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(40_000);
            self.0.push(count);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_write_of_several_records_ends_with_one_of_a_byte() {
        let mut records = Records::new(Lengths::default());
        for (length, expected) in [
            (100, &[100][..]),
            (RECORD, &[RECORD]),
            (RECORD + 1, &[RECORD, 1]),
            (50_000, &[40_000, 9_999, 1]),
            (1, &[1]),
        ] {
            records.write_all(&vec![0; length]).await.unwrap();
            records.flush().await.unwrap();
            assert_eq!(std::mem::take(&mut records.stream.0), expected, "{length}");
        }
        // Nothing was flushed in between, so the second write is no record by itself.
        records.write_all(&[0; 10]).await.unwrap();
        records.write_all(&[0; 10]).await.unwrap();
        assert_eq!(records.stream.0, [10, 9, 1]);
    }
}
