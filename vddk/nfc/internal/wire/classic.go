package wire

import (
	"encoding/binary"
	"fmt"
)

// Message is one message of the classic handshake that precedes frames:
//
//	+----------+-----------------------------------------------+
//	| u32 type | arguments by type, padded with zeros to 264    |
//	+----------+-----------------------------------------------+
//
// In order (C: client, S: server):
//
//	C ClientRandom    tag text at 4; hosts before 8.0 may refuse it with SessionComplete
//	C FileCopy        zeros; its purpose is unknown, hosts expect it
//	C Version         u32 at 4: version of the protocol the client speaks
//	S FileOpStatus    u32 1 at 16
//	S Version         u32 at 4: 7 = vSphere 7.0 early, 9 = 7.0.3, 11 = 8.0
//	C ConnectionData  u32 length of name at 4, u32 length of operation id at 8; then both strings, not framed
//	C Features        u32 at 4: 1 = may be interrupted, 2 = may switch host
//	C AIOOpen         zeros
//	S AIOOpen         zeros; from here on frames
//
// A host reads one message per TLS record, so each is written by itself.
type Message [MessageSize]byte

// MessageSize is the size of every message in bytes.
const MessageSize = 264

// MessageType tells messages apart.
type MessageType uint32

// Messages used for disks.
const (
	SessionComplete MessageType = 4  // the session is over: the client's farewell, or a refusal
	MessageError    MessageType = 20 // u32 code at 4, u32 length at 8... of text that follows
	FileCopy        MessageType = 33
	FileOpStatus    MessageType = 36
	ClientRandom    MessageType = 43
	Version         MessageType = 51
	AIOOpen         MessageType = 52
	ConnectionData  MessageType = 54
	Features        MessageType = 55
)

// What the client says of itself in the handshake.
const (
	Protocol      = 11          // version spoken: that of vSphere 8, understood by those before and after
	MinProtocol   = 3           // servers below have no frames (vSphere 6.0 and older)
	PlainTag      = "PlainText" // the tag VMware's own client sends
	AllFeatures   = 3
	ClientName    = "vddk"
	ClientOpID    = "nbdmode"
	MaxConnString = 255 // bytes of each string of ConnectionData
)

func (t MessageType) String() string {
	switch t {
	case SessionComplete:
		return "SESSION_COMPLETE"
	case MessageError:
		return "ERROR"
	case FileCopy:
		return "FILE_COPY"
	case FileOpStatus:
		return "FILEOP_STATUS"
	case ClientRandom:
		return "CLIENTRANDOM"
	case Version:
		return "VERSION"
	case AIOOpen:
		return "AIO_OPEN"
	case ConnectionData:
		return "CONNECTION_DATA"
	case Features:
		return "SESSION_FEATURES"
	}
	return fmt.Sprintf("message %d", uint32(t))
}

// NewMessage makes a message with its arguments as consecutive u32 from offset 4.
func NewMessage(t MessageType, args ...uint32) *Message {
	var m Message
	binary.LittleEndian.PutUint32(m[:], uint32(t))
	for i, a := range args {
		binary.LittleEndian.PutUint32(m[4+4*i:], a)
	}
	return &m
}

// NewClientRandom makes a ClientRandom with its tag.
func NewClientRandom(tag string) *Message {
	m := NewMessage(ClientRandom)
	copy(m[4:], tag)
	return m
}

// NewFileOpStatus makes the acknowledgement of FileCopy.
func NewFileOpStatus() *Message { return NewMessage(FileOpStatus, 0, 0, 0, 1) }

// Type is what the message is.
func (m *Message) Type() MessageType { return MessageType(binary.LittleEndian.Uint32(m[:])) }

// Arg is the i-th u32 behind the type.
func (m *Message) Arg(i int) uint32 { return binary.LittleEndian.Uint32(m[4+4*i:]) }
