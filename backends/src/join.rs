//! Waiting for several at once, in the caller's task.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

/// Waits for all of these at the same time.
pub(crate) async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = Vec::new();
    outputs.resize_with(waiting.len(), || None);
    poll_fn(|cx| {
        let mut all = Poll::Ready(());
        for (future, output) in waiting.iter_mut().zip(&mut outputs) {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(ready) => *output = Some(ready),
                    Poll::Pending => all = Poll::Pending,
                }
            }
        }
        all
    })
    .await;
    outputs
        .into_iter()
        .map(|output| output.expect("all are ready"))
        .collect()
}

/// Waits for the first of these that succeeds; fails if all do, with the error that says most.
#[cfg(feature = "redis")]
pub(crate) async fn first_of<T, F: Future<Output = larder_core::Result<T>>>(
    futures: impl IntoIterator<Item = F>,
) -> Option<larder_core::Result<T>> {
    let mut waiting: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut failed: Option<larder_core::Error> = None;
    poll_fn(|cx| {
        let mut success = None;
        waiting.retain_mut(|future| {
            if success.is_some() {
                return true;
            }
            match future.as_mut().poll(cx) {
                Poll::Pending => return true,
                Poll::Ready(Ok(output)) => success = Some(output),
                Poll::Ready(Err(error)) => {
                    // What no retry helps is what somebody has to read.
                    if (failed.as_ref())
                        .is_none_or(|failed| failed.is_retryable() && !error.is_retryable())
                    {
                        failed = Some(error);
                    }
                }
            }
            false
        });
        match success {
            Some(output) => Poll::Ready(Some(Ok(output))),
            None if waiting.is_empty() => Poll::Ready(failed.take().map(Err)),
            None => Poll::Pending,
        }
    })
    .await
}
