// Package api is subpod's own gRPC service, beside the CRI on the same socket, for what
// the CRI has no call for, and the annotations by which subpod's commands tell the server
// what the CRI has no field for. Messages are JSON, so that no generated code is needed
// (docs/decisions/0013-json-messages.md). Package control implements the service.
package api

import (
	"context"

	"google.golang.org/grpc"
)

// Service is the full name of the gRPC service.
const Service = "subpod.v1.Control"

// Window is the flow control window of a stream and of a connection, at both ends, in
// bytes.
const Window = 1 << 20

// ReasonTrailer is the gRPC trailer that holds one of the reasons below where one gRPC
// code has several meanings. CRI calls have it too.
const ReasonTrailer = "subpod-reason"

// Reasons of errors.
const (
	ReasonCommandNotFound      = "CommandNotFound"
	ReasonCommandNotExecutable = "CommandNotExecutable"
	ReasonImageNotFound        = "ImageNotFound"
	ReasonForeignImage         = "ForeignImage"
	ReasonNotLoggedIn          = "NotLoggedIn"
	ReasonNameTaken            = "NameTaken" // another object of the runtime has the name
)

// Server is implemented by package control.
type Server interface {
	// Load loads images from files.
	Load(context.Context, *LoadRequest) (*LoadResponse, error)
	// LoadStream loads images from an archive that the client sends.
	LoadStream(context.Context, func() (*LoadChunk, error)) (*LoadResponse, error)
	// Pull pulls an image and reports its progress.
	Pull(context.Context, *PullRequest, func(*PullEvent) error) error
	// Save writes images as an archive.
	Save(context.Context, *SaveRequest, func(*Chunk) error) error
	// Push copies an image to a registry.
	Push(context.Context, *PushRequest) (*PushResponse, error)
	// Changes lists what a container has changed of its image.
	Changes(context.Context, *ChangesRequest) (*ChangesResponse, error)
	// Commit makes an image of a container.
	Commit(context.Context, *CommitRequest) (*CommitResponse, error)
	// Tag gives an image one more name.
	Tag(context.Context, *TagRequest) (*Empty, error)
	// Untag removes a name; the image is removed with its last one.
	Untag(context.Context, *UntagRequest) (*UntagResponse, error)
	// Login checks credentials with a registry and stores them in auth.json.
	Login(context.Context, *LoginRequest) (*LoginResponse, error)
	// Logout removes credentials from auth.json.
	Logout(context.Context, *LogoutRequest) (*Empty, error)
	// Wait returns once a container has exited.
	Wait(context.Context, *WaitRequest) (*WaitResponse, error)
	// Signal sends a signal to a container's process.
	Signal(context.Context, *SignalRequest) (*Empty, error)
	// Play makes a pod that the server keeps running, from a specification.
	Play(context.Context, *PlayRequest) (*PlayResponse, error)
	// Follow sends what happens to such a pod until it has ended or is stopped.
	Follow(context.Context, *FollowRequest, func(*FollowEvent) error) error
	// Start starts what was created, was stopped or has exited.
	Start(context.Context, *StartRequest) (*Empty, error)
	// Restart ends what runs, then starts it.
	Restart(context.Context, *StartRequest) (*Empty, error)
	// Pause freezes the processes of a container, or lets them go on.
	Pause(context.Context, *PauseRequest) (*Empty, error)
	// PreStop runs the preStop hook of a container of Play, before its user stops it.
	PreStop(context.Context, *PreStopRequest) (*Empty, error)
	// Rename gives a pod of "subpod run" another name.
	Rename(context.Context, *RenameRequest) (*Empty, error)
	// SetRestart changes the restart policy of a container of "subpod run".
	SetRestart(context.Context, *SetRestartRequest) (*Empty, error)
	// Top lists a container's processes.
	Top(context.Context, *TopRequest) (*TopResponse, error)
	// Session joins a client's streams to a container or a pod's port.
	Session(context.Context, *SessionStreams) (*SessionExit, error)
	// CopyInfo returns what a path in a container is.
	CopyInfo(context.Context, *CopyRequest) (*CopyInfoResponse, error)
	// CopyOut sends a file or directory of a container as a tar stream.
	CopyOut(context.Context, *CopyRequest, func(*Chunk) error) error
	// CopyIn unpacks a tar stream in a directory of a container.
	CopyIn(context.Context, func() (*CopyInChunk, error)) (*Empty, error)
	// CreateVolume makes a volume, RemoveVolume removes one that no container has.
	CreateVolume(context.Context, *VolumeRequest) (*Volume, error)
	RemoveVolume(context.Context, *VolumeRequest) (*VolumeRemoved, error)
	// Volumes lists all volumes.
	Volumes(context.Context, *Empty) (*VolumesResponse, error)
	// ExportVolume sends the content of a volume as a tar stream, ImportVolume adds one to it.
	ExportVolume(context.Context, *VolumeRequest, func(*Chunk) error) error
	ImportVolume(context.Context, func() (*ImportChunk, error)) (*Empty, error)
	// Check looks for damage and orphans, and repairs if asked to.
	Check(context.Context, *CheckRequest) (*CheckResponse, error)
	// Traces sends traces of requests.
	Traces(context.Context, *TraceRequest, func(*Trace) error) error
	// LogLevel sets and returns the level of the server's log.
	LogLevel(context.Context, *LogLevelRequest) (*LogLevelResponse, error)
	// NetworkCreate makes a network.
	NetworkCreate(context.Context, *NetworkCreateRequest) (*Network, error)
	// NetworkRemove removes a network that no pod is connected to.
	NetworkRemove(context.Context, *NetworkRequest) (*Empty, error)
	// Networks lists all networks.
	Networks(context.Context, *Empty) (*NetworksResponse, error)
}

// Register adds the service to a gRPC server.
func Register(s grpc.ServiceRegistrar, impl Server) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: Service,
		HandlerType: (*Server)(nil),
		Methods: []grpc.MethodDesc{
			{MethodName: "Load", Handler: unary("Load", impl.Load)},
			{MethodName: "Push", Handler: unary("Push", impl.Push)},
			{MethodName: "Changes", Handler: unary("Changes", impl.Changes)},
			{MethodName: "Commit", Handler: unary("Commit", impl.Commit)},
			{MethodName: "Tag", Handler: unary("Tag", impl.Tag)},
			{MethodName: "Untag", Handler: unary("Untag", impl.Untag)},
			{MethodName: "Login", Handler: unary("Login", impl.Login)},
			{MethodName: "Logout", Handler: unary("Logout", impl.Logout)},
			{MethodName: "Wait", Handler: unary("Wait", impl.Wait)},
			{MethodName: "Signal", Handler: unary("Signal", impl.Signal)},
			{MethodName: "Play", Handler: unary("Play", impl.Play)},
			{MethodName: "Start", Handler: unary("Start", impl.Start)},
			{MethodName: "Restart", Handler: unary("Restart", impl.Restart)},
			{MethodName: "Pause", Handler: unary("Pause", impl.Pause)},
			{MethodName: "PreStop", Handler: unary("PreStop", impl.PreStop)},
			{MethodName: "Rename", Handler: unary("Rename", impl.Rename)},
			{MethodName: "SetRestart", Handler: unary("SetRestart", impl.SetRestart)},
			{MethodName: "Top", Handler: unary("Top", impl.Top)},
			{MethodName: "CopyInfo", Handler: unary("CopyInfo", impl.CopyInfo)},
			{MethodName: "CreateVolume", Handler: unary("CreateVolume", impl.CreateVolume)},
			{MethodName: "RemoveVolume", Handler: unary("RemoveVolume", impl.RemoveVolume)},
			{MethodName: "Volumes", Handler: unary("Volumes", impl.Volumes)},
			{MethodName: "Check", Handler: unary("Check", impl.Check)},
			{MethodName: "LogLevel", Handler: unary("LogLevel", impl.LogLevel)},
			{MethodName: "NetworkCreate", Handler: unary("NetworkCreate", impl.NetworkCreate)},
			{MethodName: "NetworkRemove", Handler: unary("NetworkRemove", impl.NetworkRemove)},
			{MethodName: "Networks", Handler: unary("Networks", impl.Networks)},
		},
		Streams: []grpc.StreamDesc{
			{StreamName: "Pull", ServerStreams: true, Handler: serverStream(impl.Pull)},
			{StreamName: "Follow", ServerStreams: true, Handler: serverStream(impl.Follow)},
			{StreamName: "Traces", ServerStreams: true, Handler: serverStream(impl.Traces)},
			{StreamName: "Save", ServerStreams: true, Handler: serverStream(impl.Save)},
			{StreamName: "CopyOut", ServerStreams: true, Handler: serverStream(impl.CopyOut)},
			{StreamName: "ExportVolume", ServerStreams: true, Handler: serverStream(impl.ExportVolume)},
			{StreamName: "ImportVolume", ClientStreams: true, Handler: clientStream(impl.ImportVolume)},
			{StreamName: "LoadStream", ClientStreams: true, Handler: clientStream(impl.LoadStream)},
			{StreamName: "CopyIn", ClientStreams: true, Handler: clientStream(impl.CopyIn)},
			{StreamName: "Session", ServerStreams: true, ClientStreams: true, Handler: serveSession(impl.Session)},
		},
	}, impl)
}
