//! What stands between the hypervisor and a domain ([`cloak_measured::protections!`]).

cloak_measured::protections! {
    /// A page that the module finds accepted ends the VM.
    Already,
    /// The guest accepts a block of memory once: `cloak_measured::accepted` is asked before, by whoever accepts.
    #[cfg(test)]
    Once,
    /// The bit that makes an address shared is the image's.
    Width,
    /// The host can't look into the domain, nor take pages away unnoticed.
    Attributes,
    /// An exception has a cause, of an instruction.
    Caused,
    /// One of a kind that nothing causes ends the VM.
    Known,
    /// A call that the hypervisor refuses was not made.
    Taken,
    /// Only the shim's ports are written, by four bytes.
    Ports,
    /// CPUID is the module's, or zero.
    Leaves,
    /// MapGPA goes on where it was, and forwards.
    Onwards,
    /// What the host could not make is no quote.
    Made,
    /// A quote fits into its buffer.
    Room,
    /// A quote is of the report that was sent.
    Same,
}
