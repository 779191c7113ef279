package plugin

import (
	"context"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/vmkeep/vmkeep/plugin/internal/pb"
)

// MaxRequest bounds a request in bytes as the plugin accepts it. Requests are small; the largest part is a list of
// machine names. (go-plugin raises limits on the host's side only; gRPC's own default is 4 MiB.)
const MaxRequest = 16 << 20

// Register serves svc on s in the protocol of proto/vmkeep/plugin/v1. [Serve] does so for a plugin process.
func Register(s grpc.ServiceRegistrar, svc Service, log hclog.Logger) {
	pb.RegisterKeepServiceServer(s, &server{svc: svc, log: log, calls: newCalls(log)})
}

// server answers the wire with a [Service].
type server struct {
	pb.UnimplementedKeepServiceServer
	svc   Service
	log   hclog.Logger
	calls *calls
}

// answer carries out a call that has one answer.
func answer[T any](ctx context.Context, s *server, fn func(context.Context) (T, error)) (T, *pb.Diagnostic) {
	var v T
	err := s.calls.run(ctx, func(ctx context.Context) (err error) {
		v, err = fn(ctx)
		return err
	})
	return v, diagnostic(err)
}

// answerTo is answer for a call with an argument.
func answerTo[Q, T any](ctx context.Context, s *server, q Q, fn func(context.Context, Q) (T, error)) (T, *pb.Diagnostic) {
	return answer(ctx, s, func(ctx context.Context) (T, error) { return fn(ctx, q) })
}

func (s *server) Info(ctx context.Context, r *pb.InfoRequest) (*pb.InfoResponse, error) {
	s.log.Debug("loaded", "host", r.GetHost(), "capabilities", r.GetCapabilities())
	info, e := answer(ctx, s, s.svc.Info)
	return &pb.InfoResponse{Info: to[*pb.Info](info), Error: e}, nil
}

func (s *server) Schema(ctx context.Context, _ *pb.SchemaRequest) (*pb.SchemaResponse, error) {
	fields, e := answer(ctx, s, s.svc.Schema)
	return &pb.SchemaResponse{Fields: toAll[*pb.Field](fields), Error: e}, nil
}

func (s *server) Validate(ctx context.Context, r *pb.ValidateRequest) (*pb.ValidateResponse, error) {
	c, err := received[Config](r.GetConfig())
	if err != nil {
		return &pb.ValidateResponse{Error: diagnostic(err)}, nil
	}
	found, e := answerTo(ctx, s, c, s.svc.Validate)
	return &pb.ValidateResponse{Diagnostics: toAll[*pb.Diagnostic](found), Error: e}, nil
}

func (s *server) Configure(ctx context.Context, r *pb.ConfigureRequest) (*pb.ConfigureResponse, error) {
	c, err := received[Config](r.GetConfig())
	if err == nil {
		err = s.calls.run(ctx, func(ctx context.Context) error { return s.svc.Configure(ctx, c) })
	}
	return &pb.ConfigureResponse{Error: diagnostic(err)}, nil
}

func (s *server) InitRepository(ctx context.Context, _ *pb.InitRepositoryRequest) (*pb.InitRepositoryResponse, error) {
	repo, e := answer(ctx, s, s.svc.InitRepository)
	return &pb.InitRepositoryResponse{Repository: to[*pb.Repository](repo), Error: e}, nil
}

func (s *server) PlanRestore(ctx context.Context, r *pb.PlanRestoreRequest) (*pb.PlanRestoreResponse, error) {
	q, err := received[RestoreRequest](r.GetRestore())
	if err != nil {
		return &pb.PlanRestoreResponse{Error: diagnostic(err)}, nil
	}
	plan, e := answerTo(ctx, s, q, s.svc.PlanRestore)
	return &pb.PlanRestoreResponse{Plan: to[*pb.RestorePlan](plan), Error: e}, nil
}

func (s *server) Forget(ctx context.Context, r *pb.ForgetRequest) (*pb.ForgetResponse, error) {
	q, err := received[ForgetRequest](r)
	if err != nil {
		return &pb.ForgetResponse{Error: diagnostic(err)}, nil
	}
	report, e := answerTo(ctx, s, q, s.svc.Forget)
	return &pb.ForgetResponse{Report: to[*pb.ForgetReport](report), Error: e}, nil
}

func (s *server) Stats(ctx context.Context, _ *pb.StatsRequest) (*pb.StatsResponse, error) {
	stats, e := answer(ctx, s, s.svc.Stats)
	return &pb.StatsResponse{Statistics: to[*pb.Statistics](stats), Error: e}, nil
}

func (s *server) Unlock(ctx context.Context, r *pb.UnlockRequest) (*pb.UnlockResponse, error) {
	q, err := received[UnlockRequest](r)
	if err != nil {
		return &pb.UnlockResponse{Error: diagnostic(err)}, nil
	}
	report, e := answerTo(ctx, s, q, s.svc.Unlock)
	return &pb.UnlockResponse{Report: to[*pb.UnlockReport](report), Error: e}, nil
}

func (s *server) Keys(ctx context.Context, _ *pb.KeysRequest) (*pb.KeysResponse, error) {
	keys, e := answer(ctx, s, s.svc.Keys)
	return &pb.KeysResponse{Keys: toAll[*pb.Key](keys), Error: e}, nil
}

func (s *server) AddKey(ctx context.Context, r *pb.AddKeyRequest) (*pb.AddKeyResponse, error) {
	q, err := received[KeyRequest](r.GetKey())
	if err != nil {
		return &pb.AddKeyResponse{Error: diagnostic(err)}, nil
	}
	key, e := answerTo(ctx, s, q, s.svc.AddKey)
	return &pb.AddKeyResponse{Key: to[*pb.Key](key), Error: e}, nil
}

func (s *server) RemoveKey(ctx context.Context, r *pb.RemoveKeyRequest) (*pb.RemoveKeyResponse, error) {
	err := s.calls.run(ctx, func(ctx context.Context) error { return s.svc.RemoveKey(ctx, r.GetId()) })
	return &pb.RemoveKeyResponse{Error: diagnostic(err)}, nil
}

func (s *server) ChangePassword(ctx context.Context, r *pb.ChangePasswordRequest) (*pb.ChangePasswordResponse, error) {
	q, err := received[KeyRequest](r.GetKey())
	if err != nil {
		return &pb.ChangePasswordResponse{Error: diagnostic(err)}, nil
	}
	key, e := answerTo(ctx, s, q, s.svc.ChangePassword)
	return &pb.ChangePasswordResponse{Key: to[*pb.Key](key), Error: e}, nil
}

func (s *server) StatFile(ctx context.Context, r *pb.StatFileRequest) (*pb.StatFileResponse, error) {
	q, err := received[FileRequest](r.GetFiles())
	if err != nil {
		return &pb.StatFileResponse{Error: diagnostic(err)}, nil
	}
	file, e := answerTo(ctx, s, q, s.svc.StatFile)
	return &pb.StatFileResponse{File: to[*pb.File](file), Error: e}, nil
}

func (s *server) Doctor(ctx context.Context, _ *pb.DoctorRequest) (*pb.DoctorResponse, error) {
	findings, e := answer(ctx, s, s.svc.Doctor)
	return &pb.DoctorResponse{Findings: toAll[*pb.Finding](findings), Error: e}, nil
}

func (s *server) Cancel(_ context.Context, r *pb.CancelRequest) (*pb.CancelResponse, error) {
	return &pb.CancelResponse{Found: s.calls.cancel(r.GetCallId())}, nil
}

func (s *server) Drain(ctx context.Context, r *pb.DrainRequest) (*pb.DrainResponse, error) {
	if t := r.GetTimeout(); t != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.AsDuration())
		defer cancel()
	}
	err := s.calls.run(ctx, s.svc.Drain)
	return &pb.DrainResponse{Error: diagnostic(err)}, nil
}
