package plugin_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/plugin/internal/pb"
)

// TestFramesAreCut: large frames come in pieces of at most FrameSize, zeros of any length come without bytes.
func TestFramesAreCut(t *testing.T) {
	data := make([]byte, 5<<20+17)
	rng := rand.NewChaCha8([32]byte{})
	rng.Read(data)
	const hole = 62 << 40
	e := &echo{frames: []plugin.Frame{{Offset: 4096, Length: int64(len(data)), Data: data}, {Offset: 1 << 30, Length: hole}, {Offset: 1<<30 + hole, Length: 0}}}
	host := connect(t, e)
	for name, read := range map[string]func(func(plugin.Frame) error) error{
		"ReadDisk": func(fn func(plugin.Frame) error) error {
			return host.ReadDisk(t.Context(), plugin.ReadDiskRequest{}, fn)
		},
		"ReadFile": func(fn func(plugin.Frame) error) error { return host.ReadFile(t.Context(), plugin.FileRequest{}, fn) },
	} {
		var got bytes.Buffer
		next, zeros := int64(4096), int64(0)
		if err := read(func(f plugin.Frame) error {
			if f.Data == nil {
				zeros += f.Length
				return nil
			}
			if len(f.Data) > plugin.FrameSize || int64(len(f.Data)) != f.Length || f.Offset != next {
				t.Errorf("%s: frame of %d (%d) bytes at %d, expected at %d", name, len(f.Data), f.Length, f.Offset, next)
			}
			next += f.Length
			got.Write(f.Data)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), data) || zeros != hole {
			t.Errorf("%s: got %d bytes and %d zeros", name, got.Len(), zeros)
		}
	}
}

// newerPlugin answers as no plugin of this version would.
type newerPlugin struct {
	pb.UnimplementedKeepServiceServer
	frame *pb.Frame
	code  pb.Code
}

func (n *newerPlugin) ReadDisk(_ *pb.ReadDiskRequest, st grpc.ServerStreamingServer[pb.ReadDiskResponse]) error {
	return st.Send(&pb.ReadDiskResponse{Frame: n.frame})
}

func (n *newerPlugin) Info(context.Context, *pb.InfoRequest) (*pb.InfoResponse, error) {
	return &pb.InfoResponse{Error: &pb.Diagnostic{Code: n.code, Summary: "new"}}, nil
}

// TestOtherVersions: a host meets a plugin that is newer, older, or broken.
func TestOtherVersions(t *testing.T) {
	n := &newerPlugin{code: 4711}
	host := plugin.NewClient(dial(t, func(s *grpc.Server) { pb.RegisterKeepServiceServer(s, n) }), "test")
	if _, err := host.Info(t.Context()); plugin.CodeOf(err) != plugin.CodeInternal || err.Error() != "new" {
		t.Errorf("an unknown code: got %#v", err)
	}
	if _, err := host.Prune(t.Context(), plugin.PruneRequest{}, nil); plugin.CodeOf(err) != plugin.CodeUnsupported {
		t.Errorf("an RPC that the plugin does not know: got %#v", err)
	}
	for _, f := range []*pb.Frame{{Offset: 0, Length: 5, Data: []byte("1234")}, {Offset: -1, Length: 1}, {Length: -1}, {}} {
		n.frame = f
		if err := host.ReadDisk(t.Context(), plugin.ReadDiskRequest{}, func(plugin.Frame) error {
			t.Errorf("frame %v was handed out", f)
			return nil
		}); plugin.CodeOf(err) != plugin.CodeInternal {
			t.Errorf("frame %v: got %#v", f, err)
		}
	}
}

// TestNewerHosts: a plugin refuses what a newer host says with numbers that it does not know.
func TestNewerHosts(t *testing.T) {
	e := &echo{}
	conn := dial(t, func(s *grpc.Server) { plugin.Register(s, e, hclog.NewNullLogger()) })
	stream, err := pb.NewKeepServiceClient(conn).Restore(t.Context(), &pb.RestoreRequest{Restore: &pb.RestoreSpec{Mode: 99}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil || m.GetError().GetCode() != pb.Code_CODE_UNSUPPORTED || m.GetReport() == nil {
		t.Errorf("got %v, %v", m, err)
	}
	if len(e.asked) > 0 {
		t.Errorf("the plugin was asked %+v", e.asked)
	}
}

// TestGoneHostsCancel: when the connection breaks, what the host had asked for is cancelled.
func TestGoneHostsCancel(t *testing.T) {
	running, cancelled := make(chan struct{}), make(chan struct{})
	e := &echo{during: func(ctx context.Context) error {
		close(running)
		<-ctx.Done()
		close(cancelled)
		return ctx.Err()
	}}
	conn := dial(t, func(s *grpc.Server) { plugin.Register(s, e, hclog.NewNullLogger()) })
	go func() {
		<-running
		conn.Close()
	}()
	_, err := plugin.NewClient(conn, "test").Backup(t.Context(), plugin.BackupRequest{}, nil)
	if err == nil {
		t.Error("the call succeeded over a closed connection")
	}
	<-cancelled
}
