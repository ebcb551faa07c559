//! From operation numbers to the functions that carry them out.

use cloak_abi::hostop::HostOp;

use super::request::{Call, Reply, Scratch};
use super::{
    attributes, files, handed, ioctl, machine, messages, names, readiness, sockets, sockopts, streams, xattrs,
};

/// Carries out one operation.
pub fn carry_out(op: HostOp, call: &Call<'_>, scratch: &mut Scratch) -> Reply {
    match op {
        HostOp::Nop => Ok(().into()),
        HostOp::Clock => machine::clock(call),
        HostOp::Open => files::open(call, scratch),
        HostOp::Close => files::close(call),
        HostOp::Read => streams::read(call),
        HostOp::Write => streams::write(call),
        HostOp::PRead => streams::pread(call),
        HostOp::PWrite => streams::pwrite(call),
        HostOp::FStat => attributes::fstat(call),
        HostOp::StatX => attributes::statx(call, scratch),
        HostOp::GetDents => files::getdents(call),
        HostOp::ReadLink => names::readlink(call, scratch),
        HostOp::MkDir => names::mkdir(call, scratch),
        HostOp::Unlink => names::unlink(call, scratch),
        HostOp::Rename => names::rename(call, scratch),
        HostOp::Link => names::link(call, scratch),
        HostOp::SymLink => names::symlink(call, scratch),
        HostOp::ChMod => attributes::chmod(call, scratch),
        HostOp::ChOwn => attributes::chown(call, scratch),
        HostOp::UTimes => attributes::utimes(call, scratch),
        HostOp::Truncate => files::truncate(call),
        HostOp::Sync => files::sync(call),
        HostOp::Allocate => files::allocate(call),
        HostOp::Flock => files::flock(call),
        HostOp::Lock => files::lock(call),
        HostOp::Access => attributes::access(call, scratch),
        HostOp::StatFs => attributes::statfs(call),
        HostOp::MkNod => names::mknod(call, scratch),
        HostOp::Ioctl => ioctl::ioctl(call),
        HostOp::CopyRange => files::copy_range(call),
        HostOp::Seek => files::seek(call),
        HostOp::GetXattr => xattrs::get(call, scratch),
        HostOp::SetXattr => xattrs::set(call, scratch),
        HostOp::ListXattr => xattrs::list(call, scratch),
        HostOp::RemoveXattr => xattrs::remove(call, scratch),
        HostOp::Socket => sockets::socket(call),
        HostOp::SocketPair => sockets::socketpair(call),
        HostOp::Bind => sockets::bind(call, scratch),
        HostOp::Listen => sockets::listen(call),
        HostOp::Accept => sockets::accept(call),
        HostOp::Connect => sockets::connect(call, scratch),
        HostOp::Shutdown => sockets::shutdown(call),
        HostOp::SendMsg => messages::send(call, scratch),
        HostOp::RecvMsg => messages::receive(call),
        HostOp::GetSockOpt => sockopts::get(call),
        HostOp::SetSockOpt => sockopts::set(call),
        HostOp::SockName => sockets::name(call),
        HostOp::Watch => readiness::watch(call),
        HostOp::Poll => readiness::poll(call, scratch),
        HostOp::Pipe => streams::pipe(call),
        HostOp::Stop => machine::stop(call),
        HostOp::Dup => files::dup(call),
        HostOp::SysInfo => machine::sysinfo(call),
        HostOp::Streams => handed::take(call),
    }
}
