package restic

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// NodeType is what a node of a tree is.
type NodeType string

// The node types. Other texts occur in trees (irregular, or none) and are reported by [Node.Check].
const (
	FileNode    NodeType = "file"
	DirNode     NodeType = "dir"
	SymlinkNode NodeType = "symlink"
	DevNode     NodeType = "dev"
	CharDevNode NodeType = "chardev"
	FIFONode    NodeType = "fifo"
	SocketNode  NodeType = "socket"
)

// Node is one entry of a directory. Fields are written in this order; all but the times, the owner's numbers and
// content are left out when empty.
type Node struct {
	Name               string // unquoted
	Type               NodeType
	Mode               fs.FileMode // Go's bits
	ModTime            time.Time
	AccessTime         time.Time
	ChangeTime         time.Time
	UID, GID           uint32
	User, Group        string
	Inode              uint64
	DeviceID           uint64
	Size               uint64 // bytes; should be the sum of the content's sizes
	Links              uint64
	LinkTarget         string
	ExtendedAttributes []ExtendedAttribute
	GenericAttributes  map[string]json.RawMessage
	Device             uint64
	Content            []ID // of a file, in order; nil is written as null
	Subtree            *ID  // of a directory
	Error              string
}

// ExtendedAttribute is a name and a value as getxattr gives it.
type ExtendedAttribute struct {
	Name  string `json:"name"`
	Value []byte `json:"value"`
}

// Tree is a directory: nodes in strictly ascending order of their names' bytes.
type Tree struct {
	Nodes []Node
}

// ErrNodeOrder says that a tree's names are not strictly ascending. Readers that merge trees go wrong on such a one.
var ErrNodeOrder = errors.New("names are not in strictly ascending order")

// Find returns the node called name, or nil.
func (t *Tree) Find(name string) *Node {
	lo, hi := 0, len(t.Nodes)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if t.Nodes[m].Name < name {
			lo = m + 1
		} else {
			hi = m
		}
	}
	if lo < len(t.Nodes) && t.Nodes[lo].Name == name {
		return &t.Nodes[lo]
	}
	return nil
}

// Check reports what readers cannot use: an empty name or one that leaves its directory, an unknown type, a file
// without content list, a directory without subtree.
func (n *Node) Check() error {
	switch {
	case n.Name == "":
		return errors.New("node without a name")
	case n.Name == "." || n.Name == ".." || strings.ContainsAny(n.Name, "/\x00"):
		return fmt.Errorf("node name %q would leave its directory", n.Name)
	}
	switch n.Type {
	case FileNode:
		if n.Content == nil {
			return fmt.Errorf("file %q has no content list", n.Name)
		}
		for _, id := range n.Content {
			if id.IsNull() {
				return fmt.Errorf("file %q lists the null ID", n.Name)
			}
		}
	case DirNode:
		if n.Subtree == nil || n.Subtree.IsNull() {
			return fmt.Errorf("directory %q has no subtree", n.Name)
		}
	case SymlinkNode, DevNode, CharDevNode, FIFONode, SocketNode:
	default:
		return fmt.Errorf("node %q has the unknown type %q", n.Name, n.Type)
	}
	return nil
}

// AppendTree appends the tree's canonical JSON, final newline included: a tree's ID is the hash of these bytes.
// It fails on names out of order, on nodes that [Node.Check] refuses, and on times outside the years 0 to 9999.
func AppendTree(dst []byte, t *Tree) ([]byte, error) {
	dst = append(dst, `{"nodes":[`...)
	for i := range t.Nodes {
		n := &t.Nodes[i]
		if err := n.Check(); err != nil {
			return nil, err
		}
		if i > 0 {
			if n.Name <= t.Nodes[i-1].Name {
				return nil, fmt.Errorf("%q after %q: %w", n.Name, t.Nodes[i-1].Name, ErrNodeOrder)
			}
			dst = append(dst, ',')
		}
		var err error
		if dst, err = n.append(dst); err != nil {
			return nil, fmt.Errorf("node %q: %w", n.Name, err)
		}
	}
	return append(dst, "]}\n"...), nil
}

func (n *Node) append(dst []byte) ([]byte, error) {
	quoted := strconv.Quote(n.Name)
	dst = append(dst, `{"name":`...)
	dst = appendString(dst, quoted[1:len(quoted)-1])
	dst = append(dst, `,"type":`...)
	dst = appendString(dst, string(n.Type))
	dst = appendUint(dst, "mode", uint64(n.Mode))
	for _, t := range []struct {
		key string
		at  time.Time
	}{{"mtime", n.ModTime}, {"atime", n.AccessTime}, {"ctime", n.ChangeTime}} {
		b, err := t.at.MarshalJSON()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.key, err)
		}
		dst = append(dst, `,"`+t.key+`":`...)
		dst = append(dst, b...)
	}
	dst = append(dst, `,"uid":`...)
	dst = strconv.AppendUint(dst, uint64(n.UID), 10)
	dst = append(dst, `,"gid":`...)
	dst = strconv.AppendUint(dst, uint64(n.GID), 10)
	dst = appendText(dst, "user", n.User)
	dst = appendText(dst, "group", n.Group)
	dst = appendUint(dst, "inode", n.Inode)
	dst = appendUint(dst, "device_id", n.DeviceID)
	dst = appendUint(dst, "size", n.Size)
	dst = appendUint(dst, "links", n.Links)
	dst = appendText(dst, "linktarget", n.LinkTarget)
	if !utf8.ValidString(n.LinkTarget) {
		dst = appendText(dst, "linktarget_raw", base64.StdEncoding.EncodeToString([]byte(n.LinkTarget)))
	}
	if len(n.ExtendedAttributes) > 0 {
		b, err := json.Marshal(n.ExtendedAttributes)
		if err != nil {
			return nil, fmt.Errorf("extended_attributes: %w", err)
		}
		dst = append(dst, `,"extended_attributes":`...)
		dst = append(dst, b...)
	}
	if len(n.GenericAttributes) > 0 {
		b, err := json.Marshal(n.GenericAttributes)
		if err != nil {
			return nil, fmt.Errorf("generic_attributes: %w", err)
		}
		dst = append(dst, `,"generic_attributes":`...)
		dst = append(dst, b...)
	}
	dst = appendUint(dst, "device", n.Device)
	dst = append(dst, `,"content":`...)
	if n.Content == nil {
		dst = append(dst, "null"...)
	} else {
		dst = append(slices.Grow(dst, 67*len(n.Content)+256), '[')
		for i, id := range n.Content {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendID(dst, id)
		}
		dst = append(dst, ']')
	}
	if n.Subtree != nil {
		dst = append(dst, `,"subtree":`...)
		dst = appendID(dst, *n.Subtree)
	}
	dst = appendText(dst, "error", n.Error)
	return append(dst, '}'), nil
}

func appendUint(dst []byte, key string, n uint64) []byte {
	if n == 0 {
		return dst
	}
	dst = append(append(append(dst, `,"`...), key...), `":`...)
	return strconv.AppendUint(dst, n, 10)
}

func appendText(dst []byte, key, text string) []byte {
	if text == "" {
		return dst
	}
	dst = append(append(append(dst, `,"`...), key...), `":`...)
	return appendString(dst, text)
}

// Bounds on what a tree may claim, so that reading one takes memory in proportion to its JSON. What exceeds them no file
// system holds.
const (
	maxName = 4096 // bytes of a node's name; the longest that systems allow is 255 characters
	// A tree of more than someNodes has at least nodeJSON bytes for each: three times and the names of the fields alone have more.
	someNodes = 1 << 16
	nodeJSON  = 128
	// attributeJSON is the least an attribute takes beyond some 100 of them, with its name and value.
	attributeJSON = 24
)

// Nodes reads a tree's JSON node by node, so that one of them is in memory at a time: it is valid until the next is asked for, and
// shares no memory with data. The first error ends it. Order and sanity of the nodes are the caller's to check, with [Node.Check] or
// [InOrder]: a damaged tree must still be readable by a repair.
func Nodes(data []byte) iter.Seq2[*Node, error] {
	return func(yield func(*Node, error) bool) {
		stopped := errors.New("no more nodes are wanted")
		s := &scanner{b: data}
		var n Node
		found := false
		err := s.object(func(key []byte) error {
			if string(key) != "nodes" {
				return s.skip()
			}
			found = true
			return s.array(func() (err error) {
				if n, err = s.node(); err == nil && !yield(&n, nil) {
					err = stopped
				}
				return err
			})
		})
		if err == nil {
			err = s.end()
		}
		if err == nil && !found {
			err = errors.New("no list of nodes")
		}
		if err != nil && err != stopped {
			yield(nil, fmt.Errorf("tree: %w", err))
		}
	}
}

// InOrder passes nodes on, up to the first that readers cannot use or whose name does not follow the one before.
func InOrder(nodes iter.Seq2[*Node, error]) iter.Seq2[*Node, error] {
	return func(yield func(*Node, error) bool) {
		last, first := "", true
		for n, err := range nodes {
			if err == nil {
				err = n.Check()
			}
			if err == nil && !first && n.Name <= last {
				err = fmt.Errorf("%q after %q: %w", n.Name, last, ErrNodeOrder)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			last, first = n.Name, false
			if !yield(n, nil) {
				return
			}
		}
	}
}

// DecodeTree reads a tree's JSON as [Nodes] does, all of it.
func DecodeTree(data []byte) (*Tree, error) {
	t := &Tree{}
	for n, err := range Nodes(data) {
		if err != nil {
			return nil, err
		}
		if t.Nodes = append(t.Nodes, *n); len(t.Nodes) > max(someNodes, len(data)/nodeJSON) {
			return nil, fmt.Errorf("tree: more than %d nodes in %d bytes", len(t.Nodes)-1, len(data))
		}
	}
	return t, nil
}

// Check reports the first node that readers cannot use, or names out of order.
func (t *Tree) Check() error {
	for _, err := range InOrder(t.all()) {
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *Tree) all() iter.Seq2[*Node, error] {
	return func(yield func(*Node, error) bool) {
		for i := range t.Nodes {
			if !yield(&t.Nodes[i], nil) {
				return
			}
		}
	}
}

func (s *scanner) node() (n Node, err error) {
	var target, targetRaw []byte
	err = s.object(func(key []byte) (err error) {
		var text []byte
		switch string(key) {
		case "name":
			if text, err = s.str(); err != nil {
				return err
			}
			if n.Name, err = strconv.Unquote(`"` + string(text) + `"`); err != nil {
				return s.fail("name %q is not quoted as Go quotes", text[:min(len(text), maxName)])
			}
			if len(n.Name) > maxName {
				return s.fail("a name of %d bytes", len(n.Name))
			}
		case "type":
			text, err = s.str()
			n.Type = NodeType(text)
		case "mode":
			var m uint32
			m, err = s.uint32()
			n.Mode = fs.FileMode(m)
		case "mtime":
			n.ModTime, err = s.time()
		case "atime":
			n.AccessTime, err = s.time()
		case "ctime":
			n.ChangeTime, err = s.time()
		case "uid":
			n.UID, err = s.uint32()
		case "gid":
			n.GID, err = s.uint32()
		case "user":
			text, err = s.str()
			n.User = string(text)
		case "group":
			text, err = s.str()
			n.Group = string(text)
		case "inode":
			n.Inode, err = s.uint()
		case "device_id":
			n.DeviceID, err = s.uint()
		case "size":
			n.Size, err = s.uint()
		case "links":
			n.Links, err = s.uint()
		case "linktarget":
			target, err = s.str()
		case "linktarget_raw":
			if text, err = s.str(); err != nil {
				return err
			}
			if targetRaw, err = base64.StdEncoding.DecodeString(string(text)); err != nil {
				return s.fail("linktarget_raw: %v", err)
			}
		case "extended_attributes":
			err = s.attributes(&n.ExtendedAttributes, func() int { return len(n.ExtendedAttributes) })
		case "generic_attributes":
			err = s.attributes(&n.GenericAttributes, func() int { return len(n.GenericAttributes) })
		case "device":
			n.Device, err = s.uint()
		case "content":
			if s.null() {
				n.Content = nil
				return nil
			}
			n.Content, err = s.ids()
		case "subtree":
			if s.null() {
				n.Subtree = nil
				return nil
			}
			n.Subtree = new(ID)
			err = s.id(n.Subtree)
		case "error":
			text, err = s.str()
			n.Error = string(text)
		default:
			err = s.skip()
		}
		return err
	})
	if n.LinkTarget = string(target); targetRaw != nil {
		n.LinkTarget = string(targetRaw)
	}
	return n, err
}

// ids reads a content list; the result is not nil.
func (s *scanner) ids() ([]ID, error) {
	out := make([]ID, 0, min(s.idsAhead(), 1<<20))
	err := s.array(func() error {
		var id ID
		if err := s.id(&id); err != nil {
			return err
		}
		out = append(out, id)
		return nil
	})
	return out, err
}

// idsAhead guesses the list's length: no longer than the input allows at 67 bytes each, and one if it is short.
func (s *scanner) idsAhead() int {
	n := 1
	for i := s.i + 1; i+67 < len(s.b) && s.b[i] == '"' && s.b[i+66] == ','; i += 67 {
		n++
	}
	return n
}

func (s *scanner) time() (time.Time, error) {
	b, err := s.str()
	if err != nil {
		return time.Time{}, err
	}
	t, err := time.Parse(time.RFC3339Nano, string(b))
	if err != nil {
		return time.Time{}, s.fail("%v", err)
	}
	return t, nil
}

// attributes reads a value of no matter for speed, which then has count elements.
func (s *scanner) attributes(v any, count func() int) error {
	b, err := s.raw()
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return s.fail("%v", err)
	}
	if n := count(); n*attributeJSON > len(b)+100*attributeJSON {
		return s.fail("%d attributes in %d bytes", n, len(b))
	}
	return nil
}
