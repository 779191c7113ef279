package nfctest

import (
	"time"

	"github.com/vmkeep/vmkeep/vddk/nfc/internal/wire"
)

// Greeting is how authd greets.
type Greeting int

// Greetings.
const (
	Modern   Greeting = iota // vSphere 8: knows THUMBPRINT_SHA2
	Plain                    // some of vSphere 7: does not
	Garbage                  // another service on the port
	Overlong                 // a line without end
	Silent                   // nothing at all
)

// Scenario is how the server behaves. The zero value is a healthy vSphere 8 host.
type Scenario struct {
	// authd
	Greeting    Greeting
	Connections int    // more at a time are closed at once; 0: no limit
	MaxTLS      uint16 // highest TLS version, 0: newest
	MinTLS      uint16 // lowest, 0: default
	OtherCert   bool   // the second TLS session presents another certificate
	Proxy       string // answer to PROXY instead of 200; "close": none
	EarlyData   bool   // nbd only: the first message goes out in one piece with the answer to PROXY

	// classic handshake
	Version  uint32 // of the protocol; 0: 11
	RefuseAt uint32 // message type answered with SESSION_COMPLETE; 0: none
	AckLate  bool   // acknowledge FILE_COPY only behind VERSION
	CutAt    uint32 // message type at which the connection is cut; 0: none
	NoRandom bool   // as hosts before 7.0: CLIENTRANDOM is answered with SESSION_COMPLETE

	// session
	MaxBuffer   uint32 // OPEN_SESSION with larger buffers fails; 0: 2 MiB
	Memory      int64  // budget of buffers over all sessions, bytes; 0: 48 MiB
	Unfriendly  bool   // SET_SOCK_OPTS and SET_RES_POOL give ERROR
	OpenFails   *Failure
	ZeroReply   bool   // every ERROR is followed by a reply of zeros
	SectorSize  uint32 // reported; 0 as such
	FileType    uint32 // reported instead of 2
	GrowBy      int64  // capacity reported is larger by this
	CloseFails  *Failure
	CloseSilent bool // CLOSE_FILE is not answered

	// reading
	Fragments   []int // sizes in turn; none: as large as the session's buffers
	OddFirst    bool  // fragments with odd index go out first
	Hold        int   // so many reads are gathered, then answered newest first
	Interleave  bool  // fragments of held reads take turns
	Faults      []Fault
	Uncompress  bool // requests for compression are ignored
	Mixed       bool // every second fragment is sent raw
	RawSkipz    bool // what skipz does not shrink is sent raw but called skipz
	Latency     time.Duration
	Jitter      time.Duration // every read waits longer by chance, up to this
	Bandwidth   int64         // bytes per second and connection from the server, 0: no limit
	IdleTimeout time.Duration
	DropAfter   int64 // connections are cut after so many bytes of reply, 0: never
	DropCount   int   // so many connections, 0: all

	// writing
	HoldWrites int // so many writes are gathered, then acknowledged newest first
	WriteFails *Failure
	WriteDelay time.Duration

	// allocated blocks
	QueryFails *Failure
	Stale      bool // a writable handle answers as it was when opened
}

// Failure is an ERROR frame: its code and text.
type Failure struct {
	Code uint64
	Text string
}

// Texts of hosts, by what went wrong.
const (
	TextPermission = "The NFC server's permission check failed"
	TextLocked     = "DiskLib error 16392: Failed to lock the file"
	TextMultiwrite = "Thin/TBZ/Sparse disks cannot be opened in multiwriter mode"
	TextNotFound   = "DiskLib error 4: The system cannot find the file specified"
	TextMemory     = "NFC error 5 (Failed to allocate the requested %d bytes)"
)

// FaultKind is what goes wrong with a read.
type FaultKind int

// Faults of a read.
const (
	BadStatus     FaultKind = iota + 1 // reply with status 7 and no data
	Refused                            // ERROR instead of a reply
	RefusedLate                        // ERROR, then a reply of zeros
	Overlap                            // a fragment begins inside the previous one
	Duplicate                          // a fragment comes twice
	Missing                            // the last fragment does not come, the connection stays
	OutOfRange                         // a fragment beyond the operation's end
	WrongTotal                         // total length differs from the request
	WrongBase                          // offset differs from the request
	TooLong                            // raw data longer than the fragment
	HugeWire                           // wire length beyond any buffer
	Cut                                // connection cut in mid-fragment
	WrongMagic                         // header of another protocol
	UnknownID                          // reply to an operation nobody asked for
	HugePayload                        // payload size beyond any
	Corrupt                            // packed data damaged; raw data when nothing is packed are left alone
	NoMemory                           // ERROR: failed to allocate
	WrongType                          // a reply of another type
	OverrunRecord                      // skipz record beyond the fragment
	Stall                              // no answer, the connection stays
)

// Fault makes one read fail.
type Fault struct {
	Kind FaultKind
	Nth  int // counts all reads since the scenario was set, from 1; 0: every read
}

const defaultMemory = 48 << 20   // VMware: 48 MB per NFC server
const defaultMaxBuffer = 2 << 20 // vSphere 8 takes 2 MiB and refuses 16
const maxSession = 16 << 20      // VMware: open fails above 16 MB per session

func (s Scenario) version() uint32 {
	if s.Version == 0 {
		return wire.Protocol
	}
	return s.Version
}
