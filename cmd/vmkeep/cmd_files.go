package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmkeep/vmkeep/plugin"
)

func (a *app) filesCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "files", Short: "List and restore files of guests", Args: subcommandOnly,
		Long: `List and restore single files of the guest inside a point, without starting or entering the guest.

Paths are as in the guest: /etc/fstab, C:\Users\ann or C:/Users/ann. Mount points come from the guest's own fstab, drive
letters and mounted folders from its registry; / of Windows holds its drives. Without a path, the volumes are listed.
A volume that the guest mounts nowhere is named with --volume. Putting files into a machine is not possible: restore the disk, or copy
them in by the guest's own means.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(a.filesList(), a.filesFind(), a.filesGet(), a.filesDiff())
	return cmd
}

// fileFlags adds the flags that all commands for files have.
func fileFlags(cmd *cobra.Command) *plugin.FileRequest {
	r := new(plugin.FileRequest)
	cmd.Flags().StringVarP(&r.Machine, "machine", "m", "", "machine of \"latest\": name or instanceUuid")
	cmd.Flags().StringVar(&r.Volume, "volume", "", "volume: mount point, drive letter or label")
	return r
}

func (a *app) filesList() *cobra.Command {
	cmd := &cobra.Command{Use: "ls POINT [PATH]", Short: "List volumes or a directory", Args: takes(1, 2),
		Example: "  vmkeep files ls latest -m web1\n  vmkeep files ls latest -m web1 /etc"}
	r := fileFlags(cmd)
	cmd.Flags().BoolVarP(&r.Recursive, "recursive", "R", false, "directories below too")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r.Point = args[0]
		if len(args) > 1 {
			r.Path = args[1]
		}
		return a.withPlugin(cmd, func(ctx context.Context, s session) error { return a.listFiles(ctx, s, *r) })
	}
	return cmd
}

func (a *app) filesFind() *cobra.Command {
	cmd := &cobra.Command{Use: "find POINT GLOB...", Short: "Find files by name", Args: takes(2, -1), Example: "  vmkeep files find latest -m web1 '*.conf' --in /etc"}
	r := fileFlags(cmd)
	cmd.Flags().StringVar(&r.Path, "in", "", "look in this directory and below; default: everywhere")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r.Point, r.Globs, r.Recursive = args[0], args[1:], true
		if r.Path == "" && r.Volume == "" {
			r.Path = "/"
		}
		return a.withPlugin(cmd, func(ctx context.Context, s session) error { return a.listFiles(ctx, s, *r) })
	}
	return cmd
}

func (a *app) listFiles(ctx context.Context, s session, r plugin.FileRequest) error {
	return s.ListFiles(ctx, r, func(f plugin.File) error {
		if a.json {
			writeJSON(a.stdout, "file", f)
			return nil
		}
		_, err := fmt.Fprintln(a.stdout, fileLine(f))
		return outputError(err)
	})
}

// fileLine writes a file as ls -l does, near enough. Control characters in names are quoted: a guest chose them.
func fileLine(f plugin.File) string {
	name := printable(f.Path)
	if f.Link != "" {
		name += " -> " + printable(f.Link)
	}
	if f.Note != "" {
		name += "  (" + f.Note + ")"
	}
	if f.Type == "volume" {
		return fmt.Sprintf("%-10s %10s  %s", "volume", size(f.Size), name)
	}
	return fmt.Sprintf("%s %5d %5d %12d %s %s", modeString(f), f.UID, f.GID, f.Size, when(f.ModTime), name)
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

func modeString(f plugin.File) string {
	letters := map[string]string{"file": "-", "dir": "d", "symlink": "l", "fifo": "p", "socket": "s", "device": "b", "chardev": "c"}
	kind, ok := letters[f.Type]
	if !ok {
		kind = "?"
	}
	bits := []byte("rwxrwxrwx")
	for i := range bits {
		if f.Mode&(1<<(8-i)) == 0 {
			bits[i] = '-'
		}
	}
	for _, s := range []struct {
		bit         uint32
		at          int
		with, alone byte
	}{{0o4000, 2, 's', 'S'}, {0o2000, 5, 's', 'S'}, {0o1000, 8, 't', 'T'}} {
		if f.Mode&s.bit == 0 {
			continue
		}
		if bits[s.at] == '-' {
			bits[s.at] = s.alone
		} else {
			bits[s.at] = s.with
		}
	}
	return kind + string(bits)
}

func (a *app) filesGet() *cobra.Command {
	cmd := &cobra.Command{Use: "get POINT PATH", Short: "Restore files", Args: takes(2, 2),
		Long: `Restore a file or a directory with everything below from the guest inside a point.

  --to DIRECTORY   into a directory here (nothing is ever written outside of it)
  --tar            as a tar archive to standard output, with all metadata
  --zip            as a zip archive to standard output, with modes, times and symbolic links
  --stdout         one file's content to standard output, or with --stream one of its streams

An alternate data stream of a Windows guest becomes a file "NAME:STREAM" beside the file or directory it belongs to.
What the guest encrypted is named and left out, as "NAME.unreadable" with the reason in archives. Into a directory
holes stay holes; names that the target cannot hold are skipped and told. As root owners, ACLs and capabilities are
restored, otherwise modes, times and users' extended attributes.`,
		Example: "  vmkeep files get latest -m web1 /etc --to ./web1-etc\n  vmkeep files get latest -m web1 /var/lib/app --tar | zstd > app.tar.zst"}
	r := fileFlags(cmd)
	f := cmd.Flags()
	to := f.StringP("to", "t", "", "directory to restore into")
	tarOut := f.Bool("tar", false, "write a tar archive to standard output")
	zipOut := f.Bool("zip", false, "write a zip archive to standard output")
	content := f.Bool("stdout", false, "write the file's content to standard output")
	f.StringVar(&r.Stream, "stream", "", "with --stdout: this alternate data stream")
	force := f.Bool("force", false, "with --to: overwrite files that exist")
	f.StringSliceVar(&r.Globs, "name", nil, "only files whose names match")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r.Point, r.Path, r.Recursive = args[0], args[1], true
		chosen := 0
		for _, c := range []bool{*to != "", *tarOut, *zipOut, *content} {
			if c {
				chosen++
			}
		}
		if chosen != 1 {
			return wrongUse(cmd, "give one of --to, --tar, --zip and --stdout")
		}
		if a.json && *to == "" {
			return wrongUse(cmd, "--json and file contents cannot share standard output; use --to")
		}
		return a.withPlugin(cmd, func(ctx context.Context, s session) error {
			switch {
			case *tarOut:
				return s.TarFiles(ctx, *r, func(data []byte) error {
					_, err := a.stdout.Write(data)
					return outputError(err)
				})
			case *zipOut:
				return a.zipFiles(ctx, s, *r)
			case *content:
				out := newHoles(a.stdout)
				if err := s.ReadFile(ctx, *r, out.frame); err != nil {
					return err
				}
				return out.close()
			}
			return a.unpack(ctx, s, *r, unpacking{dir: *to, overwrite: *force})
		})
	}
	return cmd
}
