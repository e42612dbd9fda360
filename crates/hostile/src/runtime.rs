//! One runtime for each thread, so that an input does not pay for making one.

use tokio::runtime::{Builder, Runtime};

thread_local! {
    static RUNTIME: Option<Runtime> = Builder::new_current_thread().enable_all().build().ok();
}

/// Runs a future to its end on this thread.
///
/// # Panics
/// Without a runtime, which a system without file descriptors cannot make.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.with(|runtime| match runtime {
        Some(runtime) => runtime.block_on(future),
        None => panic!("no runtime could be made"),
    })
}
