//! A context's OS service: what it is given of the host, its start, and its end.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use super::configuration::kept_inside;
use super::{Network, Protected, RunOptions, VolumeKey};
use crate::control::folder;
use crate::jail::privileges::Identity;
use crate::os::{self, Access, OsService, Root, SpawnConfig};
use crate::user;
use crate::vm::Border;
use crate::vm::error::{Step, VmError};

/// What is needed to start a context's OS service.
pub struct OsSide {
    /// What it may use, by the numbers that the libos names.
    pub roots: Vec<(OwnedFd, Access)>,
    network: Network,
    /// As whom it runs, where that is not the caller.
    pub user: Option<Identity>,
}

impl OsSide {
    /// Opens what the service may use.
    ///
    /// # Errors
    /// A path that is not there, an unknown user.
    pub fn of(options: &RunOptions) -> Result<Self, VmError> {
        Ok(Self {
            roots: open_roots(options)?,
            network: options.network,
            user: options.user.as_deref().map(user::named).transpose()?,
        })
    }

    /// Starts it.
    ///
    /// # Errors
    /// Which step failed.
    pub fn start(
        self,
        border: &Border,
        caller: &Identity,
        withheld: &[PathBuf],
    ) -> Result<OsService, VmError> {
        let spawn = SpawnConfig {
            region: border.shared.fd().as_fd(),
            doorbell: border.doorbell.as_fd(),
            streams: border.service_streams(),
            wakes: border.wakes.iter().map(AsFd::as_fd).collect(),
            roots: self
                .roots
                .iter()
                .map(|(fd, access)| Root {
                    directory: fd.as_fd(),
                    access: *access,
                })
                .collect(),
            spin: SpawnConfig::SPIN,
            network: self.network != Network::None,
            user: self.user.filter(|user| user != caller),
            withheld: withheld.to_vec(),
        };
        os::spawn(&spawn).map_err(|e| VmError::Os {
            step: "starting the OS service",
            source: std::io::Error::other(e),
        })
    }
}

/// Tells when the service has ended.
///
/// # Errors
/// When there are no descriptors or threads left.
pub fn watch(service: &OsService, ended: impl Fn() + Send + 'static) -> Result<(), VmError> {
    let pidfd = service
        .pidfd()
        .try_clone_to_owned()
        .step("watching the OS service")?;
    let watcher = move || {
        let mut poll = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        while rustix::event::poll(&mut poll, None) == Err(rustix::io::Errno::INTR) {}
        ended();
    };
    thread::Builder::new()
        .name("os-service".to_owned())
        .stack_size(64 << 10)
        .spawn(watcher)
        .step("watching the OS service")?;
    Ok(())
}

/// What the OS service may use: the host's root, the shared volumes, the containers of the protected ones.
fn open_roots(options: &RunOptions) -> Result<Vec<(OwnedFd, Access)>, VmError> {
    let open = |path: &Path| {
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
            .open(path);
        file.map(OwnedFd::from).map_err(|source| VmError::Volume {
            path: path.to_owned(),
            source,
        })
    };
    let host_root = PathBuf::from("/");
    let root = options.host_root.map(|_| (&host_root, true));
    let shared = options.volumes.iter().map(|v| (&v.host, v.read_only));
    let measured = options.measured.volumes.iter().map(|(source, _)| (source, true));
    let only_read = |v: &Protected| v.read_only || matches!(v.key, VolumeKey::Nobody);
    let protected = options.protected.iter().map(|v| (&v.container, only_read(v)));
    let mut roots = Vec::new();
    let swap = kept_inside(options).map(|limit| (&limit.swap, false));
    if let Some((path, _)) = swap {
        let made = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path);
        made.map_err(|source| VmError::Volume {
            path: path.clone(),
            source,
        })?;
    }
    // In the order of the numbers that the configuration gives them (`configuration::mounts`, then the protected volumes).
    let all = root
        .into_iter()
        .chain(shared)
        .chain(measured)
        .chain(protected)
        .chain(swap);
    for (path, read_only) in all {
        let access = if read_only {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        roots.push((open(path)?, access));
    }
    Ok(roots)
}

/// The files that no OS service must be given, as they are found without symbolic links.
///
/// # Errors
/// One that is not there, or one that a volume would give.
pub fn withheld(all: &[RunOptions]) -> Result<Vec<PathBuf>, VmError> {
    let canonical = |path: &PathBuf| {
        path.canonicalize().map_err(|source| VmError::Volume {
            path: path.clone(),
            source,
        })
    };
    let protected = all.iter().flat_map(|options| &options.protected);
    let of_volumes = protected.flat_map(|volume| &volume.withheld);
    let files = of_volumes.chain(all.iter().flat_map(|options| &options.withheld));
    let mut files = files.map(canonical).collect::<Result<Vec<_>, _>>()?;
    // A service that was taken over shall not find what opens control sockets, its own VM's or others'.
    files.extend(folder::withheld());
    let volumes = all.iter().flat_map(|options| &options.volumes);
    let measured = all.iter().flat_map(|options| &options.measured.volumes);
    let shared = volumes.map(|v| (&v.host, v.read_only));
    for (host, read_only) in shared.chain(measured.map(|(source, _)| (source, true))) {
        let given = canonical(host)?;
        // The host's root is given entry by entry, without what is withheld.
        if given == Path::new("/") && read_only {
            continue;
        }
        if let Some(file) = files.iter().find(|file| file.starts_with(&given)) {
            return Err(VmError::Exposed {
                file: file.clone(),
                volume: host.clone(),
            });
        }
    }
    Ok(files)
}
