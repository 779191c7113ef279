package restic

import (
	"encoding/json"
	"fmt"
	"math"
	"unicode/utf8"
)

// scanner reads JSON in one pass without reflection. Indexes and trees are lists of millions of IDs: encoding/json
// spends 1.3 µs on each, this some tens of ns. Nothing it returns outlives the input, except what is said to be copied.
//
// The race detector is kept out of the loops over bytes, which it would make ten times slower. Each value of the input is
// still read under its eyes: its first byte or its last.
type scanner struct {
	b []byte
	i int
}

// maxDepth bounds nesting of values that are skipped: no document of the format nests deeper than six.
const maxDepth = 64

func (s *scanner) fail(format string, args ...any) error {
	return fmt.Errorf("json at byte %d: %s", s.i, fmt.Sprintf(format, args...))
}

//go:norace
func (s *scanner) space() {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case ' ', '\n', '\t', '\r':
			s.i++
		default:
			return
		}
	}
}

// peek is the next byte that is not white space, 0 at the end.
func (s *scanner) peek() byte {
	s.space()
	if s.i < len(s.b) {
		return s.b[s.i]
	}
	return 0
}

func (s *scanner) expect(c byte) error {
	if s.peek() != c || s.i >= len(s.b) {
		return s.fail("want %q", c)
	}
	s.i++
	return nil
}

// end fails unless only white space is left.
func (s *scanner) end() error {
	if s.space(); s.i != len(s.b) {
		return s.fail("trailing data")
	}
	return nil
}

// object calls field for every key, positioned at its value, which field must consume.
func (s *scanner) object(field func(key []byte) error) error {
	if err := s.expect('{'); err != nil {
		return err
	}
	if s.peek() == '}' {
		s.i++
		return nil
	}
	for {
		key, err := s.str()
		if err != nil {
			return err
		}
		if err := s.expect(':'); err != nil {
			return err
		}
		if err := field(key); err != nil {
			return err
		}
		switch s.peek() {
		case ',':
			s.i++
		case '}':
			s.i++
			return nil
		default:
			return s.fail("want ',' or '}'")
		}
	}
}

// array calls item positioned at each element, which item must consume.
func (s *scanner) array(item func() error) error {
	if err := s.expect('['); err != nil {
		return err
	}
	if s.peek() == ']' {
		s.i++
		return nil
	}
	for {
		if err := item(); err != nil {
			return err
		}
		switch s.peek() {
		case ',':
			s.i++
		case ']':
			s.i++
			return nil
		default:
			return s.fail("want ',' or ']'")
		}
	}
}

// null consumes null if it is next.
func (s *scanner) null() bool {
	if s.peek() == 'n' && len(s.b)-s.i >= 4 && string(s.b[s.i:s.i+4]) == "null" {
		s.i += 4
		return true
	}
	return false
}

// str reads a string. The result aliases the input unless the string has escapes.
//
//go:norace
func (s *scanner) str() ([]byte, error) {
	if err := s.expect('"'); err != nil {
		return nil, err
	}
	start := s.i
	ascii := true
	for s.i < len(s.b) {
		switch c := s.b[s.i]; {
		case c == '"':
			out := s.b[start:s.i]
			if !ascii && !utf8.Valid(out) {
				return nil, s.fail("string is not UTF-8")
			}
			s.i++
			return out, nil
		case c == '\\':
			return s.escaped(start)
		case c < ' ':
			return nil, s.fail("control character in string")
		case c >= utf8.RuneSelf:
			ascii = false
		}
		s.i++
	}
	return nil, s.fail("string does not end")
}

// escaped reads on in a string that began at start, at its first backslash. The result is a copy.
func (s *scanner) escaped(start int) ([]byte, error) {
	for s.i < len(s.b) {
		switch s.b[s.i] {
		case '\\':
			s.i += 2
		case '"':
			s.i++
			var out string
			if err := json.Unmarshal(s.b[start-1:s.i], &out); err != nil {
				return nil, s.fail("string: %v", err)
			}
			return []byte(out), nil
		default:
			s.i++
		}
	}
	return nil, s.fail("string does not end")
}

// uint reads a whole number that is not negative.
//
//go:norace
func (s *scanner) uint() (uint64, error) {
	s.space()
	start := s.i
	var n uint64
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		d := uint64(s.b[s.i] - '0')
		if n > (math.MaxUint64-d)/10 {
			return 0, s.fail("number too large")
		}
		n = n*10 + d
		s.i++
	}
	if s.i == start || s.i-start > 1 && s.b[start] == '0' {
		return 0, s.fail("want a whole number")
	}
	return n, nil
}

// uint32 reads a whole number below 4 Gi.
func (s *scanner) uint32() (uint32, error) {
	n, err := s.uint()
	if err == nil && n > math.MaxUint32 {
		err = s.fail("number exceeds 32 bits")
	}
	return uint32(n), err
}

// id reads an ID.
func (s *scanner) id(id *ID) error {
	// The common spelling is decoded in place: 64 digits between quotes.
	if s.space(); len(s.b)-s.i >= 66 && s.b[s.i] == '"' && s.b[s.i+65] == '"' {
		if unhex(id, s.b[s.i+1:s.i+65]) {
			s.i += 66
			return nil
		}
	}
	b, err := s.str()
	if err != nil {
		return err
	}
	if len(b) != 64 || !unhex(id, b) {
		return s.fail("%q is not an ID", b[:min(len(b), 80)])
	}
	return nil
}

// nibbles maps a digit's byte to its value, all other bytes to 0xff.
const nibbles = "" +
	x16 + x16 + x16 + "\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\xff\xff\xff\xff\xff\xff" +
	"\xff\x0a\x0b\x0c\x0d\x0e\x0f\xff\xff\xff\xff\xff\xff\xff\xff\xff" + x16 +
	"\xff\x0a\x0b\x0c\x0d\x0e\x0f\xff\xff\xff\xff\xff\xff\xff\xff\xff" + x16 +
	x16 + x16 + x16 + x16 + x16 + x16 + x16 + x16

const x16 = "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"

// unhex decodes exactly 64 digits.
//
//go:norace
func unhex(id *ID, b []byte) bool {
	b = b[:64]
	var bad byte
	for i := range id {
		hi, lo := nibbles[b[2*i]], nibbles[b[2*i+1]]
		bad |= hi | lo
		id[i] = hi<<4 | lo&0x0f
	}
	return bad < 0x10
}

// skip passes over any value.
func (s *scanner) skip() error { return s.skipDeep(0) }

func (s *scanner) skipDeep(depth int) error {
	if depth > maxDepth {
		return s.fail("nested deeper than %d", maxDepth)
	}
	switch c := s.peek(); {
	case c == '{':
		return s.object(func([]byte) error { return s.skipDeep(depth + 1) })
	case c == '[':
		return s.array(func() error { return s.skipDeep(depth + 1) })
	case c == '"':
		_, err := s.str()
		return err
	case c == '-' || c >= '0' && c <= '9':
		start := s.i
		for s.i < len(s.b) {
			switch c := s.b[s.i]; {
			case c >= '0' && c <= '9', c == '+', c == '-', c == '.', c == 'e', c == 'E':
				s.i++
				continue
			}
			break
		}
		if !json.Valid(s.b[start:s.i]) {
			return s.fail("malformed number")
		}
		return nil
	}
	for _, word := range []string{"null", "true", "false"} {
		if len(s.b)-s.i >= len(word) && string(s.b[s.i:s.i+len(word)]) == word {
			s.i += len(word)
			return nil
		}
	}
	return s.fail("want a value")
}

// raw is the text of the next value; it aliases the input.
func (s *scanner) raw() ([]byte, error) {
	s.space()
	start := s.i
	if err := s.skip(); err != nil {
		return nil, err
	}
	return s.b[start:s.i], nil
}

// appendID appends an ID as a JSON string.
func appendID(dst []byte, id ID) []byte {
	const digits = "0123456789abcdef"
	dst = append(dst, '"')
	for _, b := range id {
		dst = append(dst, digits[b>>4], digits[b&0x0f])
	}
	return append(dst, '"')
}

// appendString appends s as encoding/json spells it, HTML escapes included: tree IDs depend on it.
func appendString(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < ' ' || c >= utf8.RuneSelf || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			b, err := json.Marshal(s)
			if err != nil {
				panic(err) // a string always marshals
			}
			return append(dst, b...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}
