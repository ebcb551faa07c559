//! What a hypervisor that lies can do, by name: the same on each kind of machine.

/// Makes the type `Hostile` of cases and their names.
macro_rules! cases {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// What it does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Hostile { $($(#[$doc])* $name,)* }

        impl Hostile {
            /// All of them, by name.
            pub const ALL: &[(&str, Self)] = &[$(($text, Self::$name)),*];

            /// The one of this name.
            #[must_use]
            pub fn named(name: &str) -> Option<Self> {
                let mut all = Self::ALL.iter();
                all.find(|(known, _)| *known == name).map(|(_, case)| *case)
            }
        }
    };
}

pub(crate) use cases;
