//! `cloak run`: one program in one VM.

mod id_block;
mod platform;
pub(super) mod protected;
pub(super) mod publish;
mod stated;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use cloak_host::control::folder::Name;
use cloak_host::platform::Machine;
use cloak_host::run::{
    self, Environment, Network, Outcome, Published, Resident, RootTree, RunOptions, Volume,
};

use cloak_host::tdvmcall::service::Address;

use self::platform::Platform;

/// Exit code of Cloak's own failures.
const FAILED: u8 = 125;

/// What to run, and in what.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Number of vCPUs (default: the host's processors, at most 64)
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    cpus: Option<usize>,
    /// Guest memory: a number with K, M, G or T (default: 4G). The host gives pages only as they are touched
    // A negative number is a wrong size and not an unknown option.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_negative_numbers = true)]
    memory: Option<u64>,
    /// Set or pass on an environment variable (repeatable). Without it the caller's environment is passed on
    #[arg(long = "env", short = 'e', value_name = "NAME[=VALUE]", value_parser = parse_variable)]
    environment: Vec<String>,
    /// Start with an empty environment, but for --env
    #[arg(long)]
    clear_env: bool,
    /// Run the program, and access its files, as this user of the host (root only). Names and groups are those of
    /// /etc/passwd and /etc/group
    #[arg(long, short = 'u', value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Working directory of the program (default: the current one)
    #[arg(long, short = 'w', value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// What the host's root is to the program. Nothing that it writes there reaches the host
    /// [default: overlay]
    #[arg(long, value_enum, conflicts_with = "manifest")]
    root: Option<Root>,
    /// Make a host directory or file visible in the guest (repeatable). `exclusive`: nobody else changes it while the
    /// program runs, so the guest may remember how long files are, as databases ask at each statement
    #[arg(long, short = 'v', value_name = "HOST:GUEST[:ro|:exclusive]", value_parser = parse_volume)]
    volume: Vec<Volume>,
    /// Give the guest a protected volume (see `cloak volume create`) at GUEST. Its key is not shown to the OS side
    /// (repeatable)
    #[arg(long, value_name = protected::SHAPE, value_parser = protected::Asked::parse)]
    protected: Vec<protected::Asked>,
    /// Run what this manifest says (see `cloak manifest`). Arguments after `--` are added to the program's, if it lets the
    /// caller do that
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Key file that the context's keys follow from (see `cloak key new`). Without it they end with the run
    #[arg(
        long,
        value_name = "FILE",
        requires = "manifest",
        conflicts_with = "root_key_fd"
    )]
    root_key: Option<PathBuf>,
    /// Descriptor to read that key from
    #[arg(long, value_name = "N", requires = "manifest")]
    root_key_fd: Option<u32>,
    /// What remembers the last root of the manifest's protected volume at GUEST (repeatable)
    #[arg(long, value_name = protected::ANCHOR_SHAPE, value_parser = protected::AnchorAsked::parse, requires = "manifest")]
    anchor: Vec<protected::AnchorAsked>,
    /// The host's network, none at all, or one of its own (default: the host's)
    #[arg(long, value_enum)]
    network: Option<NetworkArg>,
    /// Let the host's port HOST lead to the port GUEST of a private network, from when the program binds it. Without ADDRESS it
    /// is there on all IPv4 addresses of the host (repeatable)
    #[arg(long, short = 'p', value_name = publish::SHAPE, value_parser = publish::parse)]
    publish: Vec<Published>,
    /// Keep at most this much of guest memory as plaintext, and the rest sealed in the file of --swap
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "swap")]
    resident: Option<u64>,
    /// Where sealed pages go with --resident. What was in the file is gone
    #[arg(long, value_name = "FILE", requires = "resident")]
    swap: Option<PathBuf>,
    /// Name of the VM, and the host name inside. Under it `cloak ps`, `exec` and `inspect` find the VM while it runs
    #[arg(long)]
    name: Option<Name>,
    /// Kind of machine: `plain` KVM, SEV-SNP or TDX in hardware or simulated, or the best that there is
    #[arg(long, value_enum, default_value_t = Platform::Auto)]
    platform: Platform,
    /// Certificates to give out beside a guest's reports, as a table of the GHCB protocol (see docs/deploy-snp.md)
    #[arg(long, value_name = "FILE")]
    certificates: Option<PathBuf>,
    /// ID block of an SNP guest: a structure of 96 bytes as the firmware takes it (see docs/deploy-snp.md). The firmware starts no
    /// other image, and reports name who signed it
    #[arg(long, value_name = "FILE", requires = "id_auth")]
    id_block: Option<PathBuf>,
    /// Its signature and keys, perhaps with an author key: a structure of 4096 bytes
    #[arg(long, value_name = "FILE", requires = "id_block")]
    id_auth: Option<PathBuf>,
    /// Where the quotes of a TDX domain come from: unix:PATH or vsock:CID:PORT (default: Intel's quoting service on this
    /// machine, see docs/deploy-tdx.md)
    #[arg(long, value_name = "ADDRESS")]
    quote_service: Option<Address>,
    /// Tell what the machine is
    #[arg(long)]
    verbose: bool,
    /// Let the simulated hypervisor do something that it must not (for tests of Cloak itself)
    #[arg(long, hide = true, value_name = "CASE")]
    hostile: Option<String>,
    /// Keep standard input open (always so; accepted for habit)
    #[arg(short = 'i', long, hide = true)]
    interactive: bool,
    /// Use the terminal (always so when there is one; accepted for habit)
    #[arg(short = 't', long, hide = true)]
    tty: bool,
    /// Tell counts of calls, exits and faults on standard error at the end
    #[arg(long)]
    stats: bool,
    /// Tell each system call on standard error
    #[arg(long)]
    trace: bool,
    /// Leave system-call instructions as they are (slower)
    #[arg(long)]
    no_patch: bool,
    /// Let the kernel check and edit page tables, as for contexts that share a VM (for tests of Cloak itself)
    #[arg(long, hide = true)]
    kernel_tables: bool,
    /// The KVM device
    #[arg(long, value_name = "PATH", default_value = "/dev/kvm", hide = true)]
    device: PathBuf,
    /// The program and its arguments; with --manifest, further arguments
    #[arg(
        required_unless_present = "manifest",
        trailing_var_arg = true,
        value_name = "PROGRAM"
    )]
    command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum Root {
    #[default]
    /// Changes stay in guest memory, and end with the program
    Overlay,
    /// Writes give an error
    ReadOnly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum NetworkArg {
    /// As it is
    Host,
    /// As in an empty network namespace
    None,
    /// Its own: what its processes say to each other stays inside, connections to others go through the host, and nobody
    /// reaches it but by --publish
    Private,
}

impl From<NetworkArg> for Network {
    fn from(asked: NetworkArg) -> Self {
        match asked {
            NetworkArg::Host => Self::Host,
            NetworkArg::None => Self::None,
            NetworkArg::Private => Self::Private,
        }
    }
}

/// Runs the program; gives its exit code, or ends by its signal.
pub fn run(mut args: Args) -> ExitCode {
    let stats = args.stats;
    let id = args.id_block.take().zip(args.id_auth.take());
    let machine = platform::machine(
        args.platform,
        args.hostile.as_deref(),
        args.certificates.as_deref(),
        args.quote_service.as_ref(),
        args.verbose,
    );
    let options = machine.map_err(|error| error.to_string()).and_then(|machine| {
        if args.manifest.is_some() {
            stated::options(args, machine).map_err(|error| error.to_string())
        } else {
            plain(args, machine)
        }
    });
    let options = options.and_then(|mut options| {
        if let Some((block, auth)) = &id {
            id_block::add(&mut options, block, auth).map_err(|error| error.to_string())?;
        }
        Ok(options)
    });
    let options = match options {
        Ok(options) => options,
        Err(error) => {
            eprintln!("cloak: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let (outcome, statistics) = match run::run(options) {
        Ok(ended) => ended,
        Err(error) => {
            eprintln!("cloak: {error}");
            return ExitCode::from(FAILED);
        }
    };
    if stats {
        eprint!("{statistics}");
    }
    match outcome {
        Outcome::Exited(code) => ExitCode::from(code),
        Outcome::Refused(code, why) => {
            eprintln!("cloak: {why}");
            ExitCode::from(code)
        }
        Outcome::Signalled(signal) => run::die_by(signal),
    }
}

/// A run without a manifest.
fn plain(args: Args, machine: Machine) -> Result<RunOptions, String> {
    let opened = args.protected.into_iter().map(protected::Asked::open);
    let protected = opened
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("--protected: {error}"))?;
    let default = RunOptions::new(args.command);
    let network = args.network.map_or(default.network, Network::from);
    publishable(network, &args.publish)?;
    Ok(RunOptions {
        device: args.device,
        cpus: args.cpus,
        memory: args.memory.unwrap_or(default.memory),
        environment: Environment {
            clear: args.clear_env,
            set: args.environment,
        },
        user: args.user,
        workdir: args.workdir,
        host_root: Some(match args.root.unwrap_or_default() {
            Root::Overlay => RootTree::Overlay,
            Root::ReadOnly => RootTree::ReadOnly,
        }),
        volumes: args.volume,
        protected,
        network,
        published: args.publish,
        resident: args
            .resident
            .zip(args.swap)
            .map(|(bytes, swap)| Resident { bytes, swap }),
        name: args.name.as_ref().map(|name| name.as_str().to_owned()),
        control: args.name,
        machine,
        trace: args.trace,
        patch: !args.no_patch,
        kernel_tables: args.kernel_tables,
        ..default
    })
}

/// Ports are those of a private network, each once.
pub(super) fn publishable(network: Network, published: &[Published]) -> Result<(), String> {
    if !published.is_empty() && network != Network::Private {
        return Err("ports can be published of a private network only (--network private)".to_owned());
    }
    publish::check(published)
}

pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = text.split_at(text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).len());
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text:?} is not a size such as 512M or 4G"))?;
    let shift = match unit
        .to_ascii_uppercase()
        .trim_end_matches('B')
        .trim_end_matches('I')
    {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("{unit:?} is not a unit: use K, M, G or T")),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text} is too large"))
}

pub(super) fn parse_variable(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('=') {
        Err("expected NAME=VALUE, or NAME to pass on the caller's".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

pub(super) fn parse_volume(text: &str) -> Result<Volume, String> {
    let mut parts = text.split(':');
    let (Some(host), Some(guest)) = (parts.next(), parts.next()) else {
        return Err("expected HOST:GUEST, HOST:GUEST:ro or HOST:GUEST:exclusive".to_owned());
    };
    let (read_only, exclusive) = match (parts.next(), parts.next()) {
        (None, _) | (Some("rw"), None) => (false, false),
        (Some("ro"), None) => (true, false),
        (Some("exclusive"), None) => (false, true),
        _ => return Err("after HOST:GUEST there can be :ro, :rw or :exclusive only".to_owned()),
    };
    if host.is_empty() || !guest.starts_with('/') {
        return Err("HOST must not be empty, and GUEST must be an absolute path".to_owned());
    }
    Ok(Volume {
        host: host.into(),
        guest: guest.into(),
        read_only,
        exclusive,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("4GiB"), Ok(4 << 30));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert!(parse_size("four").is_err());
        assert!(parse_size("4X").is_err());
        assert!(parse_size("99999999999T").is_err());
    }

    #[test]
    fn variables_have_names() {
        assert_eq!(parse_variable("A=b=c"), Ok("A=b=c".to_owned()));
        assert_eq!(parse_variable("A"), Ok("A".to_owned()));
        assert!(parse_variable("=b").is_err());
        assert!(parse_variable("").is_err());
    }

    #[test]
    fn volumes_name_both_sides() {
        assert_eq!(
            parse_volume("/a:/b:ro"),
            Ok(Volume {
                host: "/a".into(),
                guest: "/b".into(),
                read_only: true,
                exclusive: false,
            })
        );
        assert!(parse_volume("/a:/b:exclusive").is_ok_and(|volume| volume.exclusive && !volume.read_only));
        assert!(parse_volume("/a:/b:ro:exclusive").is_err());
        assert!(parse_volume("/a").is_err());
        assert!(parse_volume("/a:b").is_err());
        assert!(parse_volume("/a:/b:xx").is_err());
        assert!(parse_volume(":/b").is_err());
    }
}
