package registry

import (
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// Key is a key of a hive.
type Key struct {
	h      *Hive
	name   string
	keys   list
	values list
}

// list is where the cells of keys or values are named.
type list struct {
	count int
	at    uint32
}

// Root is the key at the top, whose name is of no use.
func (h *Hive) Root() (Key, error) { return h.key(h.root) }

// Key:
//
//	0    2     4 ...      20   24   28         32   36     40         44 ...   72        74     76
//	"nk" flags written .. keys (..) their list (..) values their list security name len  (..)   name
//
// Flag 0x20: the name is in Latin-1, else in UTF-16. Lists in parentheses exist while Windows runs only.
func (h *Hive) key(at uint32) (Key, error) {
	b, err := h.cell(at, 76)
	if err != nil {
		return Key{}, err
	}
	n := int(le.Uint16(b[72:]))
	if string(b[:2]) != "nk" || 76+n > len(b) {
		return Key{}, guestfs.Damaged("cell %#x is no key", at)
	}
	return Key{h: h, name: text(b[76:76+n], le.Uint16(b[2:])&0x20 != 0),
		keys:   list{int(le.Uint32(b[20:])), le.Uint32(b[28:])},
		values: list{int(le.Uint32(b[36:])), le.Uint32(b[40:])}}, nil
}

// text decodes a name.
func text(b []byte, latin bool) string {
	if latin {
		r := make([]rune, len(b))
		for i, c := range b {
			r[i] = rune(c)
		}
		return string(r)
	}
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = le.Uint16(b[2*i:])
	}
	return string(utf16.Decode(u))
}

// Name is the key's own name, without those above it.
func (k Key) Name() string { return k.name }

// Subkeys are the keys below, in the order of the hive. An error ends them.
func (k Key) Subkeys() iter.Seq2[Key, error] {
	return func(yield func(Key, error) bool) {
		if k.keys.count == 0 {
			return
		}
		cells, err := k.h.subkeys(k.keys.at, true)
		if err != nil {
			yield(Key{}, fmt.Errorf("key %q: %w", k.name, err))
			return
		}
		for _, at := range cells {
			sub, err := k.h.key(at)
			if !yield(sub, err) || err != nil {
				return
			}
		}
	}
}

// subkeys reads a list of keys: kind(2) count(2) and, for each key, its cell ("li"), or cell and a hash of its name
// ("lf", "lh"). A list "ri" names cells of further lists, of the other kinds.
func (h *Hive) subkeys(at uint32, further bool) ([]uint32, error) {
	b, err := h.cell(at, 4)
	if err != nil {
		return nil, err
	}
	kind, count := string(b[:2]), int(le.Uint16(b[2:]))
	width := map[string]int{"li": 4, "ri": 4, "lf": 8, "lh": 8}[kind]
	if width == 0 || kind == "ri" && !further || 4+count*width > len(b) {
		return nil, guestfs.Damaged("cell %#x is no list of keys", at)
	}
	var out []uint32
	for i := range count {
		c := le.Uint32(b[4+i*width:])
		if kind != "ri" {
			out = append(out, c)
			continue
		}
		more, err := h.subkeys(c, false)
		if err != nil {
			return nil, err
		}
		if out = append(out, more...); len(out) > maxKeys {
			return nil, guestfs.Damaged("more than %d keys in a list", maxKeys)
		}
	}
	return out, nil
}

// Find finds a key by the names that lead to it, without regard to case; fs.ErrNotExist when there is none.
func (k Key) Find(path ...string) (Key, error) {
	for _, name := range path {
		next, found := Key{}, false
		for sub, err := range k.Subkeys() {
			if err != nil {
				return Key{}, err
			}
			if strings.EqualFold(sub.name, name) {
				next, found = sub, true
				break
			}
		}
		if !found {
			return Key{}, fmt.Errorf("registry key %q: %w", name, fs.ErrNotExist)
		}
		k = next
	}
	return k, nil
}

// Types of values that [Value.Text] reads ([MS-RRP], 3.1.1.5).
const (
	typeString = 1
	typeExpand = 2
)

// Value is a value of a key.
type Value struct {
	Name string // "" is the key's default value
	Type uint32
	Data []byte
}

// Text is a string, without the NUL that ends it; "" when the value is none.
func (v Value) Text() string {
	if v.Type != typeString && v.Type != typeExpand {
		return ""
	}
	s, _, _ := strings.Cut(text(v.Data, false), "\x00")
	return s
}

// Values are the values of a key, in the order of the hive. An error ends them.
func (k Key) Values() iter.Seq2[Value, error] {
	return func(yield func(Value, error) bool) {
		if k.values.count == 0 {
			return
		}
		if k.values.count > maxKeys {
			yield(Value{}, guestfs.Damaged("key %q has %d values", k.name, k.values.count))
			return
		}
		b, err := k.h.cell(k.values.at, 4*k.values.count)
		if err != nil {
			yield(Value{}, fmt.Errorf("values of %q: %w", k.name, err))
			return
		}
		total := 0
		for i := range k.values.count {
			v, err := k.h.value(le.Uint32(b[4*i:]))
			if total += len(v.Name) + len(v.Data); total > maxAll && err == nil {
				err = fmt.Errorf("values of %q: more than %d MiB: %w", k.name, maxAll>>20, guestfs.ErrTooLarge)
			}
			if !yield(v, err) || err != nil {
				return
			}
		}
	}
}

// Value finds a value by its name, without regard to case; fs.ErrNotExist when there is none.
func (k Key) Value(name string) (Value, error) {
	for v, err := range k.Values() {
		if err != nil {
			return Value{}, err
		}
		if strings.EqualFold(v.Name, name) {
			return v, nil
		}
	}
	return Value{}, fmt.Errorf("registry value %q: %w", name, fs.ErrNotExist)
}

// Value:
//
//	0    2         4              8     12    16    18  20
//	"vk" name len  data len       data  type  flags ..  name
//
// The highest bit of the length says that the data, of at most four bytes, is where else its cell is named. Flag 1: the
// name is in Latin-1.
func (h *Hive) value(at uint32) (Value, error) {
	b, err := h.cell(at, 20)
	if err != nil {
		return Value{}, err
	}
	n := int(le.Uint16(b[2:]))
	if string(b[:2]) != "vk" || 20+n > len(b) {
		return Value{}, guestfs.Damaged("cell %#x is no value", at)
	}
	v := Value{Name: text(b[20:20+n], le.Uint16(b[16:])&1 != 0), Type: le.Uint32(b[12:])}
	size, data := le.Uint32(b[4:]), le.Uint32(b[8:])
	const inPlace = 1 << 31
	if size&inPlace != 0 {
		if size &^= inPlace; size > 4 {
			return Value{}, guestfs.Damaged("value %q holds %d bytes in 4", v.Name, size)
		}
		v.Data = slices.Clone(b[8 : 8+size])
		return v, nil
	}
	v.Data, err = h.data(data, int64(size))
	if err != nil {
		return Value{}, fmt.Errorf("value %q: %w", v.Name, err)
	}
	return v, nil
}

// data reads the bytes of a value. More than segment bytes are in several cells, which a list names that a cell "db"
// names: "db" count(2) list(4). Versions below 1.4 have one cell whatever the size, as does what needs no list.
func (h *Hive) data(at uint32, size int64) ([]byte, error) {
	const segment = 16344
	if size == 0 {
		return nil, nil
	}
	if size > maxCell {
		return nil, fmt.Errorf("%d bytes in a value: %w", size, guestfs.ErrTooLarge)
	}
	b, err := h.cell(at, int(min(size, 8)))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) >= size {
		return b[:size], nil
	}
	if string(b[:2]) != "db" {
		return nil, guestfs.Damaged("cell %#x has %d bytes of %d", at, len(b), size)
	}
	count := int(le.Uint16(b[2:]))
	cells, err := h.cell(le.Uint32(b[4:]), 4*count)
	if err != nil {
		return nil, err
	}
	var out []byte
	for i := 0; i < count && int64(len(out)) < size; i++ {
		n := min(segment, size-int64(len(out)))
		part, err := h.cell(le.Uint32(cells[4*i:]), int(n))
		if err != nil {
			return nil, err
		}
		out = append(out, part[:n]...)
	}
	if int64(len(out)) < size {
		return nil, guestfs.Damaged("%d bytes in the segments of a value of %d", len(out), size)
	}
	return out, nil
}
