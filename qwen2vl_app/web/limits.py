"""What the server takes from one visitor and from all together: every limit has its name here."""

MAX_IMAGE_BYTES = 20 * 2**20  # of an uploaded image file
MAX_CLIP_BYTES = 50 * 2**20  # of an uploaded clip
MAX_JSON_BYTES = 2**18  # of a question, which names its images by their ids
MAX_CHAT_BYTES = 32 * 2**20  # of a request to /v1/chat/completions, images included
UPLOAD_SECONDS = 120.0  # in which the body of a request must be here

MAX_IMAGE_PIXELS = 50_000_000  # once decoded; a phone's camera has 12 to 50 million
MAX_CLIP_PIXELS = 4096 * 2304  # of one frame
MAX_CLIP_SECONDS = 600.0
MAX_CLIP_FRAMES = 32  # that the model sees
MAX_MEDIA = 8  # images and clips of one conversation
MAX_QUESTION = 4000  # characters
MAX_NEW_TOKENS = 512

MAX_SESSIONS = 200
MAX_SESSION_BYTES = 2**27  # uploads and cache of one visitor
MAX_TOTAL_BYTES = 2**31  # of all visitors; whoever was away longest is forgotten first
MAX_WAITING = 100  # questions in the queue
MAX_CONNECTIONS = 400

MAX_LOOKED_AT = 128  # tokens of an answer that are looked into
MAX_MAP_BYTES = 600_000  # of attention maps that are sent for one answer
MAX_FRAMES_SHOWN = 16  # of a clip


class Refused(ValueError):
    """What is asked can't be done: a line for the visitor, and the HTTP status that says why."""

    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status
