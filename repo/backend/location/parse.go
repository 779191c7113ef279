// Package location opens the repository that a location names. Locations, options and environment variables are
// restic's, letter by letter, so that what works for restic works here:
//
//	/path  local:/path                                    a directory
//	rest:https://user:pass@host:8000/path/                a REST server; also rest:http+unix:///socket:/path/
//	s3:https://host/bucket/prefix  s3:host/bucket  s3://  an S3 service
//	sftp:user@host:/path  sftp://user@host:port//path     an SFTP server
//	rclone:remote:path                                    any store rclone knows
//
// It hides which package serves which location and how their settings are found, and it keeps secrets: a
// [Location] prints without them, and no error shows the text it was parsed from.
package location

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"

	"github.com/vmkeep/vmkeep/repo/backend"
)

// Location names a repository. The zero Location names none.
type Location struct {
	scheme string
	path   string   // local: directory; sftp: path; rclone: remote:path
	url    *url.URL // rest, without credentials; s3: endpoint only
	user   *url.Userinfo

	bucket, prefix string // s3
	host, port     string // sftp; rest: host is the socket, if any
	text           string // sftp: what String gives
}

// hint is for people who meant a directory.
const hint = "a directory whose name holds a colon is written as local:/path"

// Parse reads a location. The error does not repeat the text, for it may hold a password.
func Parse(s string) (Location, error) {
	l, err := parse(s)
	if err != nil {
		return Location{}, backend.Permanent(fmt.Errorf("repository location: %w", err))
	}
	return l, nil
}

func parse(s string) (Location, error) {
	scheme, rest, ok := strings.Cut(s, ":")
	switch {
	case s == "":
		return Location{}, errors.New("none given (use -r or RESTIC_REPOSITORY)")
	case !ok, strings.HasPrefix(s, "/"), strings.HasPrefix(s, "./"), strings.HasPrefix(s, "../"):
		return Location{scheme: "local", path: s}, nil
	}
	switch scheme {
	case "local":
		if rest == "" {
			return Location{}, errors.New("local: lacks a directory")
		}
		return Location{scheme: "local", path: rest}, nil
	case "rest":
		return parseREST(rest)
	case "s3":
		return parseS3(rest)
	case "sftp":
		return parseSFTP(s, rest)
	case "rclone":
		if rest == "" || strings.HasPrefix(rest, "-") {
			return Location{}, errors.New("rclone: lacks a remote, as in rclone:remote:path")
		}
		return Location{scheme: "rclone", path: rest}, nil
	case "azure", "gs", "b2", "swift":
		return Location{}, fmt.Errorf("%s: is reached through rclone here: define a remote with `rclone config` and write rclone:<remote>:<path>", scheme)
	}
	if len(scheme) == 1 && (strings.HasPrefix(rest, `\`) || strings.HasPrefix(rest, "/")) {
		return Location{scheme: "local", path: s}, nil // a Windows drive
	}
	return Location{}, fmt.Errorf("no such kind of store; known are local:, rest:, s3:, sftp: and rclone: (%s)", hint)
}

// errURL does not wrap net/url's error, which quotes from the URL.
var errURL = errors.New("not a URL (special characters in user name and password must be percent-encoded)")

func parseREST(rest string) (Location, error) {
	u, err := url.Parse(rest)
	if err != nil {
		return Location{}, fmt.Errorf("rest: %w", errURL)
	}
	l := Location{scheme: "rest", user: u.User}
	switch {
	case u.Scheme == "http+unix" && u.Host == "":
		socket, p, ok := strings.Cut(u.Path, ":")
		if !ok {
			return Location{}, errors.New("rest:http+unix:// needs socket and path, as in rest:http+unix:///run/rest.sock:/repository/")
		}
		// The socket takes the place of the host; the request's own host name means nothing to the server.
		l.host = socket
		u = &url.URL{Scheme: "http", Host: "unix", Path: p}
	case (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "":
		return Location{}, errors.New("rest: needs an http or https URL, as in rest:https://host:8000/path/")
	}
	u.User = nil
	if !strings.HasSuffix(u.Path, "/") {
		u.Path += "/"
		u.RawPath = ""
	}
	l.url = u
	return l, nil
}

func parseS3(rest string) (Location, error) {
	if trimmed, ok := strings.CutPrefix(rest, "//"); ok {
		rest = trimmed
	}
	if !strings.HasPrefix(rest, "http://") && !strings.HasPrefix(rest, "https://") {
		rest = "https://" + rest
	}
	u, err := url.Parse(rest)
	if err != nil {
		return Location{}, fmt.Errorf("s3: %w", errURL)
	}
	if u.User != nil {
		return Location{}, errors.New("s3: takes no credentials (use AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)")
	}
	bucket, prefix, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if u.Hostname() == "" || bucket == "" {
		return Location{}, errors.New("s3: needs host and bucket, as in s3:https://host/bucket/prefix")
	}
	if prefix = path.Clean("/" + prefix)[1:]; prefix == "." {
		prefix = ""
	}
	return Location{scheme: "s3", url: &url.URL{Scheme: u.Scheme, Host: u.Host}, bucket: bucket, prefix: prefix}, nil
}

func parseSFTP(s, rest string) (Location, error) {
	l := Location{scheme: "sftp"}
	var hostport, given string // as in the text
	if strings.HasPrefix(rest, "//") {
		u, err := url.Parse(s)
		if err != nil {
			return Location{}, fmt.Errorf("sftp: %w", errURL)
		}
		if _, set := u.User.Password(); set {
			return Location{}, errors.New("sftp: takes no password (use a key, or ssh's configuration)")
		}
		l.user, l.host, l.port, hostport = u.User, u.Hostname(), u.Port(), u.Host
		l.path = strings.TrimPrefix(u.Path, "/") // one slash parts it from the host; a second one makes it absolute
	} else {
		target, p, ok := strings.Cut(rest, ":")
		if !ok {
			return Location{}, errors.New("sftp: needs host and path, as in sftp:user@host:/path")
		}
		l.host, l.path, given = target, p, p
		if i := strings.LastIndexByte(target, '@'); i >= 0 {
			l.user, l.host = url.User(target[:i]), target[i+1:]
		}
	}
	switch {
	case l.host == "" || strings.HasPrefix(l.host, "-"):
		return Location{}, errors.New("sftp: needs a host, as in sftp:user@host:/path")
	case l.path == "":
		return Location{}, errors.New("sftp: needs a path, as in sftp:user@host:/path")
	case strings.HasPrefix(l.path, "~"):
		return Location{}, errors.New("sftp: paths do not know ~; a path without a leading slash begins at the user's home")
	}
	l.path = path.Clean(l.path)
	if strings.HasPrefix(rest, "//") {
		l.text = "sftp://" + redacted(l.user) + (&url.URL{Host: hostport, Path: "/" + l.path}).String()[2:]
	} else {
		l.text = "sftp:" + rest[:len(rest)-len(given)] + l.path // this form takes user and host as they are
	}
	return l, nil
}

// Scheme is local, rest, s3, sftp or rclone.
func (l Location) Scheme() string { return l.scheme }

// String is the location with three asterisks for the password. Parse reads it again.
func (l Location) String() string {
	switch l.scheme {
	case "local", "rclone":
		if l.scheme == "rclone" || strings.Contains(l.path, ":") {
			return l.scheme + ":" + l.path
		}
		return l.path
	case "rest":
		text := l.url.String()
		if l.host != "" {
			text = "http+unix://" + l.host + ":" + l.url.Path
		}
		return "rest:" + strings.Replace(text, "://", "://"+redacted(l.user), 1)
	case "s3":
		return "s3:" + l.url.String() + "/" + path.Join(l.bucket, l.prefix)
	case "sftp":
		return l.text
	}
	return "no location"
}

// GoString keeps %#v and %+v from showing the password.
func (l Location) GoString() string { return "location.Location(" + l.String() + ")" }

func redacted(user *url.Userinfo) string {
	if user == nil {
		return ""
	}
	text := url.User(user.Username()).String()
	if _, set := user.Password(); set {
		text += ":***"
	}
	return text + "@"
}
