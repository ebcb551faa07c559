//! A machine for tests, whose module and hypervisor answer anything.

use crate::{Machine, Registers};

pub struct Answering<'a>(Box<dyn FnMut(&mut Registers) + 'a>);

impl<'a> Answering<'a> {
    pub fn new(answer: impl FnMut(&mut Registers) + 'a) -> Self {
        Self(Box::new(answer))
    }
}

impl Machine for Answering<'_> {
    fn tdcall(&mut self, registers: &mut Registers) {
        (self.0)(registers);
    }
}
