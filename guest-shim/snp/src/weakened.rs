//! What stands between the hypervisor and an SNP guest ([`cloak_measured::protections!`]).

cloak_measured::protections! {
    /// The C-bit is the image's: the hypervisor's word, and that of the table of CPUID values.
    CBit,
    /// The page that the hypervisor takes requests from is the one that the guest writes them to.
    Registered,
    /// A page that PVALIDATE finds accepted ends the guest.
    Unchanged,
    /// The guest accepts a block of memory once: `cloak_measured::accepted` is asked before, by whoever accepts.
    #[cfg(test)]
    Once,
    /// A page that can't be accepted ends the guest.
    Accepted,
    /// An answer has the tag of the processor's key.
    Tag,
    /// An answer is the one to this message.
    Number,
    /// A channel whose message got no answer is closed, and its number spent.
    Closed,
    /// The page of secrets is cleared.
    Cleared,
    /// The reason of a #VC is what its instruction does.
    Founded,
    /// Only the context's own ports go to the hypervisor.
    Ports,
    /// CPUID is answered from the table.
    Table,
}
