//! The administrator's commands.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use zeroize::Zeroizing;

use super::get::Broker;
use super::{CliError, read, read_text};
use crate::audit::{Entry, Head};
use crate::client::Client;
use crate::config::Config;
use crate::path::ResourcePath;
use crate::seal::Sealer;
use crate::store::Store;

/// Where the broker is, and who asks.
#[derive(Debug, Args)]
struct Admin {
    #[command(flatten)]
    broker: Broker,
    /// File with the administrator's token.
    #[arg(long, env = "CLOAK_KBS_ADMIN_TOKEN", value_name = "FILE")]
    admin_token: PathBuf,
}

impl Admin {
    fn open(&self) -> Result<(Client, Zeroizing<String>), CliError> {
        let token = Zeroizing::new(read_text(&self.admin_token)?);
        Ok((self.broker.client()?, Zeroizing::new(token.trim().to_owned())))
    }
}

#[derive(Debug, Args)]
pub(super) struct PutArgs {
    /// Which secret: REPOSITORY/TYPE/TAG.
    path: ResourcePath,
    /// File with the secret.
    #[arg(long)]
    file: PathBuf,
    /// File with its policy; without, the one it has stays, and a new secret goes to nobody.
    #[arg(long)]
    policy: Option<PathBuf>,
    #[command(flatten)]
    admin: Admin,
}

#[derive(Debug, Args)]
pub(super) struct SetPolicyArgs {
    /// Which secret: REPOSITORY/TYPE/TAG.
    path: ResourcePath,
    /// File with the policy.
    policy: PathBuf,
    #[command(flatten)]
    admin: Admin,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    admin: Admin,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// Which secret: REPOSITORY/TYPE/TAG.
    path: ResourcePath,
    #[command(flatten)]
    admin: Admin,
}

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// Read the database of this configuration, with no broker in between.
    #[arg(long, conflicts_with_all = ["url", "ca", "admin_token"])]
    config: Option<PathBuf>,
    /// Address of the broker: https://HOST:PORT.
    #[arg(long, env = "CLOAK_KBS_URL", required_unless_present = "config")]
    url: Option<String>,
    /// Certificates that the broker's has to come from, PEM.
    #[arg(
        long,
        env = "CLOAK_KBS_CA",
        default_value = "/etc/ssl/certs/ca-certificates.crt"
    )]
    ca: PathBuf,
    /// File with the administrator's token.
    #[arg(long, env = "CLOAK_KBS_ADMIN_TOKEN", required_unless_present = "config")]
    admin_token: Option<PathBuf>,
}

impl PutArgs {
    pub(super) async fn run(&self) -> Result<(), CliError> {
        let (mut client, token) = self.admin.open()?;
        let secret = Zeroizing::new(read(&self.file)?);
        let policy = self.policy.as_deref().map(read_text).transpose()?;
        client.put(&token, &self.path, &secret).await?;
        if let Some(policy) = policy {
            client.put_policy(&token, &self.path, &policy).await?;
        }
        Ok(())
    }
}

impl SetPolicyArgs {
    pub(super) async fn run(&self) -> Result<(), CliError> {
        let (mut client, token) = self.admin.open()?;
        let policy = read_text(&self.policy)?;
        Ok(client.put_policy(&token, &self.path, &policy).await?)
    }
}

impl ListArgs {
    pub(super) async fn run(&self, out: &mut dyn Write) -> Result<(), CliError> {
        let (mut client, token) = self.admin.open()?;
        for secret in client.list(&token).await? {
            let policy = if secret.policy {
                ""
            } else {
                "  (no policy: goes to nobody)"
            };
            writeln!(out, "{}  version {}{policy}", secret.path, secret.version)?;
        }
        Ok(())
    }
}

impl RemoveArgs {
    pub(super) async fn run(&self) -> Result<(), CliError> {
        let (mut client, token) = self.admin.open()?;
        Ok(client.remove(&token, &self.path).await?)
    }
}

/// Where pages of the log come from.
enum Log {
    Database(Box<Store>),
    Broker(Box<Client>, Zeroizing<String>),
}

impl Log {
    async fn page(&mut self, after: u64) -> Result<Vec<Entry>, CliError> {
        match self {
            Log::Database(store) => Ok(store.audit(after, crate::store::PAGE).await?),
            Log::Broker(client, token) => Ok(client.audit(token, after).await?),
        }
    }
}

impl AuditArgs {
    pub(super) async fn run(&self, out: &mut dyn Write, err: &mut dyn Write) -> Result<(), CliError> {
        let mut log = self.open().await?;
        let mut head = Head::default();
        loop {
            let page = log.page(head.sequence).await?;
            // Each reading over the network adds an entry, so a short page is the last.
            let last = page.len() < crate::store::PAGE as usize;
            for entry in page {
                head = head.follow(&entry)?;
                writeln!(out, "{}\t{}\t{}", entry.sequence, entry.digest, entry.record)?;
            }
            if last {
                break;
            }
        }
        writeln!(
            err,
            "whole: {} entries, the last has {}",
            head.sequence,
            hex::encode(head.digest)
        )?;
        Ok(())
    }

    async fn open(&self) -> Result<Log, CliError> {
        if let Some(path) = &self.config {
            let config = Config::load(path)?;
            let sealer = Sealer::load(&config.root_key)?;
            let store = Store::open(&config, sealer.check_value()).await?;
            return Ok(Log::Database(Box::new(store)));
        }
        let (Some(url), Some(token)) = (&self.url, &self.admin_token) else {
            return Err(CliError::Key(
                "give --config, or --url and --admin-token".to_owned(),
            ));
        };
        let token = Zeroizing::new(read_text(token)?.trim().to_owned());
        Ok(Log::Broker(Box::new(Client::new(url, &self.ca)?), token))
    }
}
