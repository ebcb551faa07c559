//! How much one address may ask.

use std::net::{IpAddr, Ipv6Addr};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::config::Limits;

/// Addresses that are counted at a time; about 100 bytes each.
const ADDRESSES: usize = 100_000;

/// A bucket for each address.
pub(super) struct PerAddress(DefaultKeyedRateLimiter<IpAddr>);

impl PerAddress {
    pub(super) fn new(limits: &Limits) -> Self {
        let quota = Quota::per_second(limits.requests_per_second).allow_burst(limits.burst);
        Self(RateLimiter::keyed(quota))
    }

    /// Takes one from the address's bucket; `false` if it is empty. Where more addresses ask than can be counted, even
    /// after those with a full bucket are forgotten, a new one is refused.
    pub(super) fn admits(&self, address: IpAddr) -> bool {
        if self.0.len() >= ADDRESSES {
            self.0.retain_recent();
            if self.0.len() >= ADDRESSES {
                return false;
            }
        }
        self.0.check_key(&network(address)).is_ok()
    }
}

/// A customer commonly has a whole /64 of IPv6 addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn an_address_that_asks_too_much_is_refused_and_others_are_not() {
        let two = NonZeroU32::new(2).unwrap();
        let limits = Limits {
            requests_per_second: two,
            burst: two,
            ..Limits::default()
        };
        let limiter = PerAddress::new(&limits);
        let first: IpAddr = "2001:db8::1".parse().unwrap();
        let neighbour: IpAddr = "2001:db8::2".parse().unwrap();
        let other: IpAddr = "192.0.2.1".parse().unwrap();
        assert!(limiter.admits(first) && limiter.admits(neighbour));
        assert!(!limiter.admits(first), "one network has one bucket");
        assert!(limiter.admits(other));
    }
}
