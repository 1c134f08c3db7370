//! Ctrl-C and SIGTERM: the first requests an orderly end, the second ends the program at once.

use std::{process, sync::LazyLock, thread};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Exit code of an interrupted program.
const INTERRUPTED: i32 = 130;

// Handlers are installed on first use; commands that never check keep the default behaviour.
static REQUESTED: LazyLock<watch::Sender<bool>> = LazyLock::new(|| {
    let (sender, _) = watch::channel(false);
    let signal_sender = sender.clone();
    thread::spawn(move || watch_signals(&signal_sender));
    sender
});

/// Returns whether an interrupt was requested.
pub fn requested() -> bool {
    *REQUESTED.borrow()
}

pub async fn wait() {
    let mut receiver = REQUESTED.subscribe();
    // The sender is static, so the channel is never closed.
    let _ = receiver.wait_for(|asked| *asked).await;
}

fn watch_signals(sender: &watch::Sender<bool>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().build() else { return };
    runtime.block_on(async {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if sender.send_replace(true) {
                process::exit(INTERRUPTED);
            }
            eprintln!("\nEnding; press Ctrl-C again to end at once.");
        }
    });
}
