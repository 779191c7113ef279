package engine

import (
	"path"
	"strings"

	"github.com/vmkeep/vmkeep/vddk/mount"
)

// guestPaths turns paths on a volume into the guest's own, which selections are written in.
type guestPaths struct {
	prefixes []string // where the guest mounts the volume: "", "/home", "C:"
	fold     bool     // names are found without regard to case
}

// newGuestPaths looks where the guest mounts a volume. A volume that it mounts nowhere has paths from its own root.
func newGuestPaths(systems []mount.System, v *mount.Volume, fold bool) guestPaths {
	p := guestPaths{fold: fold}
	for _, s := range systems {
		for _, m := range s.Mounts {
			if m.Volume == v && m.Dir == "" {
				p.prefixes = append(p.prefixes, strings.TrimSuffix(m.Path, "/"))
			}
		}
	}
	if len(p.prefixes) == 0 {
		p.prefixes = []string{""}
	}
	return p
}

// match reports whether a glob fits a path on the volume: over the whole path in the guest or one above it, or, without a
// slash, over the last name.
func (p guestPaths) match(globs []string, name string) bool {
	for _, g := range globs {
		if drive, rest := mount.Drive(g); drive != "" {
			g = drive + strings.TrimSuffix(strings.ReplaceAll(rest, `\`, "/"), "/")
		}
		for _, prefix := range p.prefixes {
			full := prefix + name
			if p.fold {
				g, full = strings.ToLower(g), strings.ToLower(full)
			}
			if matchesPath(g, full) {
				return true
			}
		}
	}
	return false
}

// matchesPath reports whether a guest path, or a directory above it, matches a glob over whole paths, or its last
// name matches a glob without a slash.
func matchesPath(glob, name string) bool {
	if drive, _ := mount.Drive(glob); drive == "" && !strings.Contains(glob, "/") {
		ok, _ := path.Match(glob, path.Base(name))
		return ok
	}
	for p := name; p != "/" && p != "."; p = path.Dir(p) {
		if ok, _ := path.Match(glob, p); ok {
			return true
		}
	}
	return false
}
