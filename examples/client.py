"""A client: it gets a token, asks whether the token is active, revokes it, and asks again.

There is no generated code: `jeton serve --dev` describes its services by gRPC reflection.

    $ jeton serve --dev                                       # prints the first client's secret
    $ pip install grpcio grpcio-reflection                    # in another shell
    $ CLIENT_SECRET=jcs_... python3 examples/client.py
    active after Token: True
    active after Revoke: False
"""

import os

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

me = {"client_id": "bootstrap", "client_secret": os.environ["CLIENT_SECRET"]}
channel = grpc.insecure_channel("127.0.0.1:50051")
service = DescriptorPool(ProtoReflectionDescriptorDatabase(channel)).FindServiceByName("jeton.token.v1.TokenService")


def call(rpc, **fields):
    method = service.methods_by_name[rpc]
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    send = channel.unary_unary(f"/{service.full_name}/{rpc}", request.SerializeToString, response.FromString)
    return send(request(**me, **fields), timeout=5)


token = call("Token", scopes=["jeton:introspect:any"]).access_token
print("active after Token:", call("Introspect", token=token).active)
call("Revoke", token=token)
print("active after Revoke:", call("Introspect", token=token).active)
