//! Reports: the request for one, and the way of messages through a GHCB.

use cloak_abi::kcall::REPORT_DATA;
use cloak_abi::layout::{CERTIFICATES_GPA, CERTIFICATES_LEN, MESSAGES_GPA, PAGE};

use crate::Machine;
use crate::ghcb::{Ghcb, exits, fields};
use crate::message::{Carrier, Channel, Delivery, HEADER, Kind, LARGEST, Level, MessageError};

/// Bytes of a report.
pub const REPORT: usize = 1184;
/// Where HOST_DATA is in a report (SNP ABI, table 23).
const HOST_DATA: core::ops::Range<usize> = 0xc0..0xe0;
/// Bytes of a response before the report: status, size, 24 reserved.
const BEFORE: usize = 32;
/// Bytes of MSG_REPORT_REQ: REPORT_DATA, VMPL, 28 reserved.
const REQUEST: usize = REPORT_DATA + 32;

/// What the hypervisor says instead of delivering a message, in bits 63:32 of its answer: it is busy.
const BUSY: u64 = 2;

/// A response with a report in it.
#[derive(Debug)]
pub struct Response([u8; LARGEST]);

impl Response {
    /// What the guest was launched for (HOST_DATA).
    #[must_use]
    pub fn host_data(&self) -> [u8; 32] {
        let mut data = [0; 32];
        data.copy_from_slice(&self.report()[HOST_DATA]);
        data
    }

    /// The report.
    #[must_use]
    pub fn report(&self) -> &[u8] {
        &self.0[HEADER + BEFORE..HEADER + BEFORE + REPORT]
    }
}

/// Asks for a report, which names the level [`Level::Reports`].
///
/// # Errors
/// [`MessageError`]. [`MessageError::NotTheAnswer`] too when the processor refused; the channel stays open then.
pub fn ask(
    channel: &mut Channel,
    data: &[u8; REPORT_DATA],
    carrier: &mut impl Carrier,
) -> Result<Response, MessageError> {
    let mut request = [0; REQUEST];
    request[..REPORT_DATA].copy_from_slice(data);
    request[REPORT_DATA..REPORT_DATA + 4].copy_from_slice(&u32::from(Level::Reports as u8).to_le_bytes());
    let mut answer = [0; LARGEST];
    let len = channel.request(Kind::Report, &request, &mut answer, carrier)?;
    let status = &answer[HEADER..HEADER + 4];
    let size = &answer[HEADER + 4..HEADER + 8];
    if len != BEFORE + REPORT || status != [0; 4] || size != (REPORT as u32).to_le_bytes() {
        return Err(MessageError::NotTheAnswer);
    }
    Ok(Response(answer))
}

/// Messages by a vCPU's GHCB, in the two pages that are there for them. One vCPU at a time.
#[derive(Debug)]
pub struct ByGhcb<'a, M> {
    /// The machine.
    pub machine: &'a mut M,
    /// The vCPU's page.
    pub ghcb: Ghcb,
    /// Whether to ask for certificates, too.
    pub certificates: bool,
}

impl<M: Machine> Carrier for ByGhcb<'_, M> {
    fn send(&mut self, message: &[u8], answer: &mut [u8; LARGEST]) -> Delivery {
        let (request, response) = (MESSAGES_GPA, MESSAGES_GPA + PAGE);
        for (index, part) in (0u64..).zip(message.chunks(8)) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.machine.write(request + 8 * index, u64::from_le_bytes(word));
        }
        let more = [
            (fields::RAX, CERTIFICATES_GPA),
            (fields::RBX, CERTIFICATES_LEN / PAGE),
        ];
        let (code, more) = if self.certificates {
            (exits::EXTENDED_REQUEST, &more[..])
        } else {
            (exits::GUEST_REQUEST, &[][..])
        };
        match self.ghcb.exit(self.machine, code, [request, response], more) {
            Ok(done) if done.info == 0 => {}
            Ok(done) if done.info == BUSY << 32 => return Delivery::Busy,
            _ => return Delivery::Failed,
        }
        for (index, part) in (0u64..).zip(answer.as_chunks_mut::<8>().0) {
            *part = self.machine.read(response + 8 * index).to_le_bytes();
        }
        Delivery::Answered
    }
}

const _: () = assert!(LARGEST.is_multiple_of(8) && LARGEST <= PAGE as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secrets::Key;
    use crate::testing::{Hypervisor, Memory};

    #[test]
    fn a_hypervisor_that_refuses_or_is_busy_gives_no_report() {
        for (info, exits, error) in [
            (BUSY << 32, 64, MessageError::Undelivered),
            (1, 1, MessageError::Undelivered),
            (1 << 32, 1, MessageError::Undelivered),
            (0, 1, MessageError::NotTheAnswer),
        ] {
            let mut seen = 0;
            let mut machine = Hypervisor::new(|register, memory: &mut Memory| {
                seen += 1;
                assert_eq!(memory.read(register + fields::INFO1), MESSAGES_GPA);
                assert_eq!(memory.read(MESSAGES_GPA + 0x20), 1, "always the first number");
                memory.write(register + fields::INFO1, 0);
                memory.write(register + fields::INFO2, info);
                register
            });
            let mut channel = Channel::open(Level::Reports, Key::new([1; 32]));
            let mut carrier = ByGhcb {
                machine: &mut machine,
                ghcb: Ghcb::registered(0x7000),
                certificates: false,
            };
            let asked = ask(&mut channel, &[5; 64], &mut carrier);
            assert_eq!(asked.err(), Some(error));
            let again = ask(&mut channel, &[6; 64], &mut carrier);
            assert_eq!(again.err(), Some(MessageError::Closed));
            drop(machine);
            assert_eq!(seen, exits);
        }
    }
}
