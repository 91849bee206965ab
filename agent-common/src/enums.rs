//! Enums of which every list follows from the declaration: what is added to one cannot be forgotten elsewhere.

/// Declares an enum that is numbered from 0 in the order of its variants, or as it says, with their count (`COUNT`), all of them in an
/// array (`ALL`), and the checked conversion from a number of the wire (`from_wire`). It has no representation and no
/// traits but those that are written down; `Clone`, `Copy` and `PartialEq` are needed.
#[macro_export]
macro_rules! numbered {
    ($(#[$meta:meta])* $vis:vis enum $enum:ident { $($(#[$doc:meta])* $variant:ident $(= $number:literal)?,)+ }) => {
        $(#[$meta])*
        $vis enum $enum { $($(#[$doc])* $variant $(= $number)?,)+ }

        impl $enum {
            /// How many there are.
            $vis const COUNT: usize = Self::ALL.len();

            /// All, in the order of the declaration.
            $vis const ALL: [Self; [$(stringify!($variant)),+].len()] = [$(Self::$variant),+];

            /// The one of a number from the wire.
            #[inline(always)]
            $vis const fn from_wire(number: u32) -> Option<Self> {
                $(if number == Self::$variant as u32 {
                    return Some(Self::$variant);
                })+
                None
            }
        }
    };
}

/// The same for an enum whose variants have names, which `name` gives.
#[macro_export]
macro_rules! named {
    ($(#[$meta:meta])* $vis:vis enum $enum:ident { $($(#[$doc:meta])* $variant:ident = $name:literal,)+ }) => {
        $crate::numbered! {
            $(#[$meta])*
            $vis enum $enum { $($(#[$doc])* $variant,)+ }
        }

        impl $enum {
            /// The name, as it stands in labels and in output.
            $vis const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    named! {
        /// Something with names.
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[repr(u8)]
        enum Digit {
            /// The first.
            One = "one",
            /// The second.
            Two = "two",
            /// The third.
            Three = "three",
        }
    }

    #[test]
    fn lists_follow_from_the_declaration() {
        assert_eq!((Digit::COUNT, Digit::ALL), (3, [Digit::One, Digit::Two, Digit::Three]));
        assert_eq!(Digit::ALL.map(Digit::name), ["one", "two", "three"]);
        for (number, one) in (0..).zip(Digit::ALL) {
            assert_eq!((one as u32, Digit::from_wire(number)), (number, Some(one)));
        }
        assert_eq!([3, 256, u32::MAX].map(Digit::from_wire), [None; 3]);
    }
}
