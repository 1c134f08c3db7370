//! Ctrl-C and SIGTERM: the first asks the program to end in good order, the second ends it at once.

use std::{process, sync::LazyLock, thread};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// What a shell reports for a program that was ended by Ctrl-C.
const INTERRUPTED: i32 = 130;

// Watching begins with the first question: a program that never asks keeps the system's own behaviour.
static REQUESTED: LazyLock<watch::Sender<bool>> = LazyLock::new(|| {
    let (sender, _) = watch::channel(false);
    let signal_sender = sender.clone();
    thread::spawn(move || watch_signals(&signal_sender));
    sender
});

/// Whether the program was asked to end.
pub fn requested() -> bool {
    *REQUESTED.borrow()
}

/// Returns when the program is asked to end.
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
            eprintln!("\nEnding; once more ends at once.");
        }
    });
}
