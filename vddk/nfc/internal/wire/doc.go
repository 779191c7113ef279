// Package wire is the NFC disk protocol as bytes: what both the client (nfc) and its server double (nfctest) must
// agree on. It hides layouts: nobody else knows at which offset a field lies.
//
// Vocabulary:
//
//	line      a command or reply of authd, the daemon on port 902 that hands connections to NFC servers
//	record    a TLS record; authd's TLS session is abandoned in mid-connection, so records must not be read ahead
//	message   264 bytes of the classic handshake
//	frame     16-byte header, payload of a size fixed by its type, and what the type says follows ("extra")
//	fragment  one frame's worth of sector data; a read or write operation is one or more of them
//
// Everything here is pure: codecs over byte slices and over an [io.Reader] given by the caller. All integers are
// little-endian. Nothing allocates in proportion to a number read from the wire.
//
// The golden tests pin every layout to frames computed by hand from the protocol tables, so that client and double
// cannot drift together.
package wire
