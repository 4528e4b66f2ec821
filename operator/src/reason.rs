//! Every reason that the operator gives: of conditions, of Events and as a label of metrics.
//!
//! Stable: programs match on them. docs/errors.md explains each; a test fails when one lacks there.

/// How much a reason matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// A step on the way, or all is well: no Event.
    Progress,
    /// Somebody should know, and most often do something: worth an Event.
    Trouble,
    /// Told once by an Event or counted; it leaves no condition.
    News,
}

macro_rules! reasons {
    ($($(#[$doc:meta])+ $name:ident $weight:ident,)+) => {
        /// A reason. The name of the variant is its text.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])+ $name,)+
        }

        impl Reason {
            /// All of them, for docs/errors.md.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// As it stands in conditions, Events and metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// How much it matters.
            #[must_use]
            pub const fn weight(self) -> Weight {
                match self { $(Self::$name => Weight::$weight,)+ }
            }
        }
    };
}

reasons! {
    /// All is well.
    Ready Progress,
    /// The claim has its volume.
    Bound Progress,
    /// The user's own claim is mounted.
    InUse Progress,
    /// Every provider has its key.
    AllPresent Progress,
    /// OpenCode answers.
    Answering Progress,
    /// The kernel refuses to the agent all that it is to refuse.
    Enforced Progress,
    /// They are not; the message says what is missing.
    NotEnforced Progress,
    /// The node's kernel has no Landlock.
    LandlockUnavailable Progress,
    /// Some of what is to be refused to the agent is not.
    Partial Progress,
    /// Sidecar and agent run as one user.
    SharedUser Progress,
    /// An object is being made.
    Creating Progress,
    /// The claim waits for a volume.
    ClaimPending Progress,
    /// Pod or agent come up.
    Starting Progress,
    /// The sidecar has not told yet.
    NotReported Progress,
    /// `spec.suspend` is true. Also of an Event: the pod ends for it.
    Suspended Progress,
    /// Something ends.
    Terminating Progress,
    /// A change waits for the end of a turn.
    UpdateWaits Progress,
    /// The pod is replaced.
    Replacing Progress,
    /// There is no pod.
    PodAbsent Progress,

    /// A key is absent or empty.
    SecretMissing Trouble,
    /// A name belongs to somebody else.
    ForeignObject Trouble,
    /// The API server refused an object for good.
    Refused Trouble,
    /// A larger volume was refused.
    ExpansionRefused Trouble,
    /// Somebody deletes the claim.
    ClaimTerminating Trouble,
    /// The claim's volume is gone.
    ClaimLost Trouble,
    /// No node takes the pod.
    Unschedulable Trouble,
    /// An image is not to be had.
    ImagePullFailed Trouble,
    /// A container ends again and again.
    CrashLoop Trouble,
    /// A container cannot be made.
    ContainerFailed Trouble,
    /// The pod ended by itself. Also of an Event: it is replaced for it.
    PodEnded Trouble,
    /// The image cannot run OpenCode.
    ImageUnsupported Trouble,

    /// The name of the object is too long.
    NameTooLong Trouble,
    /// Two entries of a list have one name.
    DuplicateName Trouble,
    /// A model of a provider that is not declared.
    UnknownProvider Trouble,
    /// A model that its provider does not list.
    UnknownModel Trouble,
    /// A compatible provider without an endpoint.
    EndpointMissing Trouble,
    /// A number out of its range.
    OutOfRange Trouble,
    /// Fields that exclude each other.
    ExcludedFields Trouble,
    /// A path that leaves the workspace.
    InstructionPathInvalid Trouble,
    /// A variable that the operator sets.
    ReservedVariable Trouble,
    /// A budget of money and a model without a price.
    ModelUnpriced Trouble,
    /// All texts together are too long.
    ConfigTooLarge Trouble,

    /// The pod is replaced, because a change needs a new one.
    TemplateChanged News,
    /// It is replaced, because its node has no room for the new resources.
    ResizeInfeasible News,
    /// It is replaced, because its resources cannot be changed in place.
    ResizeRefused News,
    /// The API server did not answer in time.
    ApiTimeout News,
    /// The API server could not be asked.
    ApiError News,
    /// A watch broke off and begins anew.
    WatchInterrupted News,
}

impl Reason {
    /// The reason of this text; `None`: not one of ours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|reason| reason.as_str() == text)
    }
}
