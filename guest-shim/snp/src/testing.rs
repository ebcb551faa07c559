//! A machine for tests, with a hypervisor of any behaviour.

use std::collections::HashMap;

use crate::{Machine, Size, Validation};

/// Guest memory, as both sides see it. What was never written is zero.
#[derive(Debug, Clone, Default)]
pub struct Memory(HashMap<u64, u64>);

impl Memory {
    pub fn read(&self, gpa: u64) -> u64 {
        assert!(gpa.is_multiple_of(8));
        self.0.get(&gpa).copied().unwrap_or_default()
    }

    pub fn write(&mut self, gpa: u64, value: u64) {
        assert!(gpa.is_multiple_of(8));
        self.0.insert(gpa, value);
    }
}

type Exit<'a> = Box<dyn FnMut(u64, &mut Memory) -> u64 + 'a>;
type Validate<'a> = Box<dyn FnMut(u64, Size) -> Validation + 'a>;

/// The machine.
pub struct Hypervisor<'a> {
    pub memory: Memory,
    exit: Exit<'a>,
    pub validate: Validate<'a>,
}

impl<'a> Hypervisor<'a> {
    pub fn new(exit: impl FnMut(u64, &mut Memory) -> u64 + 'a) -> Self {
        Self {
            memory: Memory::default(),
            exit: Box::new(exit),
            validate: Box::new(|_, _| Validation::Changed),
        }
    }

    pub fn registers(exit: impl FnMut(u64, &mut Memory) -> u64 + 'a) -> Self {
        Self::new(exit)
    }

    pub fn with_validate(mut self, validate: impl FnMut(u64, Size) -> Validation + 'a) -> Self {
        self.validate = Box::new(validate);
        self
    }
}

impl Machine for Hypervisor<'_> {
    fn pvalidate(&mut self, gpa: u64, size: Size, accept: bool) -> Validation {
        assert!(accept, "nothing is ever given back");
        (self.validate)(gpa, size)
    }

    fn rmp_adjust(&mut self, _gpa: u64, _attributes: u64) -> u32 {
        0
    }

    fn vmgexit(&mut self, register: u64) -> u64 {
        (self.exit)(register, &mut self.memory)
    }

    fn read(&self, gpa: u64) -> u64 {
        self.memory.read(gpa)
    }

    fn write(&mut self, gpa: u64, value: u64) {
        self.memory.write(gpa, value);
    }
}
