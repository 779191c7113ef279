package vsphere

import (
	"fmt"
	"strconv"
	"strings"
)

// ChangeID names a state of a disk's change tracking: "52 2d 7b 8f ac 61 51 cc-77 4c 7b ec 91 50 bb 7b/12", the UUID
// of the tracking instance and a sequence number. A different UUID means that the history was lost.
type ChangeID string

// ParseChangeID checks the form of s. The empty string is not a change id.
func ParseChangeID(s string) (ChangeID, error) {
	id := ChangeID(s)
	if id.Tracking() == "" {
		return "", fmt.Errorf("change id %q: want <uuid>/<sequence>", s)
	}
	if _, ok := id.Sequence(); !ok {
		return "", fmt.Errorf("change id %q: the sequence is not a number", s)
	}
	return id, nil
}

// Tracking is the UUID of the tracking instance; empty when the id is malformed.
func (id ChangeID) Tracking() string {
	uuid, _, ok := strings.Cut(string(id), "/")
	if !ok {
		return ""
	}
	return uuid
}

// Sequence is the number after the UUID; false when there is none.
func (id ChangeID) Sequence() (uint64, bool) {
	_, seq, ok := strings.Cut(string(id), "/")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(seq, 10, 64)
	return n, err == nil
}
