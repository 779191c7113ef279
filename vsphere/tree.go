package vsphere

import (
	"context"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/types"
)

// node is a named object of the inventory.
type node struct {
	name   string // as the API gives it: '/', '\' and '%' escaped
	parent ref
}

// tree is the inventory around the machines: what names their places.
type tree struct {
	root  ref
	nodes map[ref]node
	attrs map[int32]string // custom attribute key -> name
}

// treeKinds are the properties a tree is made of.
func treeKinds() map[string][]string {
	np := []string{"name", "parent"}
	return map[string][]string{"Folder": np, "Datacenter": np, "ComputeResource": np, "HostSystem": np, "ResourcePool": np, "Datastore": np, "Network": np}
}

func (c *Client) newTree() *tree {
	return &tree{root: c.vim.ServiceContent.RootFolder, nodes: make(map[ref]node)}
}

// add takes an object's name and parent.
func (t *tree) add(o types.ObjectContent) {
	var n node
	for _, p := range o.PropSet {
		switch v := p.Val.(type) {
		case string:
			if p.Name == "name" {
				n.name = v
			}
		case ref:
			if p.Name == "parent" {
				n.parent = v
			}
		}
	}
	t.nodes[o.Obj] = n
}

// path is the inventory path of an object: "/DC0/vm/web". Names stay escaped, so that it can be given back.
func (t *tree) path(r ref) string {
	var parts []string
	for r.Value != "" && r != t.root && len(parts) < 64 {
		n, ok := t.nodes[r]
		if !ok {
			break
		}
		parts = append(parts, n.name)
		r = n.parent
	}
	slices.Reverse(parts)
	return "/" + strings.Join(parts, "/")
}

// name is an object's name, unescaped.
func (t *tree) name(r ref) string { return unescape(t.nodes[r].name) }

// above finds the nearest object of a kind above r, r included.
func (t *tree) above(r ref, kinds ...string) ref {
	for range 64 {
		if slices.Contains(kinds, r.Type) {
			return r
		}
		n, ok := t.nodes[r]
		if !ok {
			break
		}
		r = n.parent
	}
	return ref{}
}

// of lists the objects of the kinds, by path.
func (t *tree) of(kinds ...string) []ref {
	var out []ref
	for r := range t.nodes {
		if slices.Contains(kinds, r.Type) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b ref) int { return strings.Compare(t.path(a), t.path(b)) })
	return out
}

// unescape undoes vSphere's escaping of names.
func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	return strings.NewReplacer("%2f", "/", "%2F", "/", "%5c", `\`, "%5C", `\`, "%25", "%").Replace(s)
}

// escape is what vSphere does to names.
func escape(s string) string {
	return strings.NewReplacer("%", "%25", "/", "%2f", `\`, "%5c").Replace(s)
}

// readTree walks the inventory without its machines.
func (c *Client) readTree(ctx context.Context) (*tree, error) {
	t := c.newTree()
	err := c.walk(ctx, treeKinds(), func() { t = c.newTree() }, func(o types.ObjectContent) error {
		t.add(o)
		return nil
	})
	return t, err
}
