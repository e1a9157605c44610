"""Critics and values that look at a sample's label."""

from torch import Tensor, nn


class ByLabel(nn.Module):
    """A network of 1 + K outputs as one number of a sample and its label, one of K.

    The first output, common to all classes, plus the label's own: the projection of Miyato and
    Koyama (2018), since outputs are linear in the network's last features.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        """Map x (..., *shape) to numbers (..., 1).

        Args:
            x: Samples or latents.
            others: The step index, if the network wants one; at last the labels, int64. Both
                broadcastable to (...).
        """
        *steps, labels = others
        outputs = self.network(x, *steps)
        label = labels.expand(outputs.shape[:-1])[..., None]
        return outputs[..., :1] + outputs[..., 1:].gather(-1, label)  # type: ignore[no-any-return]
