package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/vmkeep/vmkeep/vddk/mount/guestfs"
)

// maxLinks is how many symbolic links a path may go through, as in Linux.
const maxLinks = 40

// Find finds a path of the guest across its mount points: "/etc/fstab", of Windows `C:\Users` or "C:/Users". Symbolic
// links on the way are followed inside the guest's tree, the last name is not. ".." leads up, never above the root.
// "/" of Windows is above its drives: a Place without a file system.
func (s System) Find(name string) (Place, error) {
	if s.windows {
		name = strings.ReplaceAll(name, `\`, "/")
	}
	rest := strings.Split(name, "/")
	at, err := s.at("/")
	if err != nil && !s.windows {
		return Place{}, err
	}
	trail := []Place{at}
	links := 0
	for len(rest) > 0 {
		elem := rest[0]
		rest = rest[1:]
		here := trail[len(trail)-1]
		switch elem {
		case "", ".":
			continue
		case "..":
			if len(trail) > 1 {
				trail = trail[:len(trail)-1]
			}
			continue
		}
		full := path.Join(here.Path, elem)
		if s.windows && len(trail) == 1 {
			full = strings.ToUpper(elem)
		}
		if next, err := s.at(full); err == nil {
			trail = append(trail, next)
			continue
		} else if !errors.Is(err, errNoMount) {
			return Place{}, err
		}
		if here.FS == nil {
			return Place{}, fmt.Errorf("%s: no volume is mounted there: %w", full, fs.ErrNotExist)
		}
		id, err := here.FS.Lookup(here.ID, elem)
		if err != nil {
			return Place{}, fmt.Errorf("%s: %w", full, err)
		}
		next := Place{full, here.Volume, here.FS, id}
		a, err := here.FS.Stat(id)
		if err != nil {
			return Place{}, fmt.Errorf("%s: %w", full, err)
		}
		if a.Type != guestfs.Symlink {
			trail = append(trail, next)
			continue
		}
		target, err := here.FS.Readlink(id)
		if err != nil {
			return Place{}, fmt.Errorf("%s: %w", full, err)
		}
		if p, ok := s.byTarget(target); ok {
			root, err := p.open(full)
			if err != nil {
				return Place{}, err
			}
			trail = append(trail, root)
			continue
		}
		if len(rest) == 0 {
			trail = append(trail, next)
			continue
		}
		if links++; links > maxLinks {
			return Place{}, fmt.Errorf("%s: more than %d symbolic links", name, maxLinks)
		}
		switch drive := s.driveOf(target); {
		case drive != "":
			target, trail = strings.ReplaceAll(target, `\`, "/"), trail[:1]
		case strings.HasPrefix(target, "/") && s.windows:
			trail = trail[:min(2, len(trail))]
		case strings.HasPrefix(target, "/"):
			trail = trail[:1]
		case strings.HasPrefix(target, `\`) || s.windows && strings.HasPrefix(target, "UNC"):
			return Place{}, fmt.Errorf("%s: a link out of the machine, to %s: %w", full, target, fs.ErrNotExist)
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return trail[len(trail)-1], nil
}

// Cross returns the root of the volume that the guest mounts at a file, whose path in the guest is given. False: it
// mounts nothing there that can be opened.
func (s System) Cross(full string, fsys *guestfs.FS, e guestfs.Entry) (Place, bool) {
	if p, err := s.at(full); err == nil {
		return p, true
	}
	if len(s.byGUID) == 0 || e.Type != guestfs.Symlink && e.Type != guestfs.Unknown {
		return Place{}, false
	}
	target, err := fsys.Readlink(e.ID)
	if err != nil {
		return Place{}, false
	}
	p, ok := s.byTarget(target)
	if !ok {
		return Place{}, false
	}
	root, err := p.open(full)
	return root, err == nil
}

var errNoMount = errors.New("nothing is mounted there")

// at is the root of what is mounted at a path.
func (s System) at(full string) (Place, error) {
	for _, p := range s.Mounts {
		if p.Path == full {
			return p.open(full)
		}
	}
	return Place{}, errNoMount
}

// open is the directory that is mounted, by the path where.
func (p MountPoint) open(where string) (Place, error) {
	if p.Volume == nil {
		return Place{}, fmt.Errorf("%s: the guest mounts %s there, which is not among the disks given: open all disks of the machine together", where, p.Source)
	}
	f, err := p.Volume.Open()
	if err != nil {
		return Place{}, fmt.Errorf("%s: %w", where, err)
	}
	id, err := f.Walk(p.Dir)
	if err != nil {
		return Place{}, fmt.Errorf("%s: %w", where, err)
	}
	return Place{where, p.Volume, f, id}, nil
}
