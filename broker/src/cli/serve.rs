//! `cloak kbs serve`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::CliError;
use crate::config::Config;
use crate::server::start;

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Configuration, as `cloak kbs init` writes one.
    #[arg(long)]
    config: PathBuf,
}

impl ServeArgs {
    pub(super) async fn run(&self, out: &mut dyn Write) -> Result<(), CliError> {
        // Before the first connection, so that no signal of an impatient supervisor ends the process instead.
        let mut reload = signal(SignalKind::hangup())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut running = start(Config::load(&self.config)?).await?;
        writeln!(out, "listening on https://{}", running.address())?;
        out.flush()?;
        loop {
            tokio::select! {
                _ = reload.recv() => match running.reload().await {
                    Ok(()) => writeln!(out, "reloaded")?,
                    Err(error) => {
                        // One line, also where a policy's error shows the place in its text.
                        let error = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                        writeln!(out, "not reloaded, all stays as it was: {error}")?;
                    }
                },
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                error = running.ended() => return Err(error.into()),
            }
            out.flush()?;
        }
        running.stop().await?;
        writeln!(out, "stopped")?;
        Ok(())
    }
}
